"""A shard from its list to its videos: stopped, killed or failed, it makes every clip once and loses none."""

import json
import subprocess
import sys
from collections import Counter

import pytest
from batches import PROMPTS, Maker, events, make, videos

from tapvideo.batch import run as batch_run
from tapvideo.batch.shard import Outcome
from tapvideo.batch.store import Manifest, Shard, ShardLocked, read_events
from tapvideo.video_io import read_mp4


def test_every_clip_is_made_once_in_order(batch):
    maker = Maker()
    assert make(batch, maker) is Outcome.DONE
    assert maker.made == [(prompt, seed) for prompt in PROMPTS for seed in (0, 1)]
    assert videos(batch) == sorted(item.file for item in batch.items)
    assert events(batch, "begin") == events(batch, "done") == [item.file for item in batch.items]
    assert not list(batch.folder.work(batch.shard).glob("*"))
    assert make(batch, maker) is Outcome.DONE
    assert len(maker.made) == 8
    assert read_mp4(batch.folder.videos / batch.items[1].file).mean() == pytest.approx(0.1, abs=0.02)


def test_shards_share_out_all_clips(batch):
    makers = [Maker() for _ in range(3)]
    for number, maker in enumerate(makers):
        make(batch, maker, shard=Shard(number, 3))
    assert [len(maker.made) for maker in makers] == [3, 3, 2]
    assert len(videos(batch)) == 8
    maker = Maker()
    assert make(batch, maker, shard=Shard(0, 2)) is Outcome.DONE  # another count finds what is there
    assert maker.made == []


def test_a_prompt_that_fails_is_recorded_and_the_rest_goes_on(batch):
    assert make(batch, Maker(bad=("a/b",))) is Outcome.FAILED
    failed = [e for e in read_events(batch.folder.manifest(batch.shard)) if e["event"] == "failed"]
    assert [(e["file"], e["error"]) for e in failed] == [
        (f"a%2Fb-{i}.mp4", "RunFailed: NaN or infinite latents") for i in (0, 1)
    ]
    assert len(videos(batch)) == 6
    maker = Maker()
    assert make(batch, maker) is Outcome.DONE
    assert maker.made == [("a/b", 0), ("a/b", 1)]


def test_what_failed_is_tried_last(batch):
    stops = iter([False, False, True])
    make(batch, Maker(bad=("a/b",)), stop=lambda: next(stops))
    maker = Maker()
    make(batch, maker)
    assert [prompt for prompt, _ in maker.made[-2:]] == ["a/b", "a/b"]


def test_foreseen_or_not_an_error_is_of_its_clip_alone(batch):
    assert make(batch, Maker(bad=("..",), error=KeyError("x"))) is Outcome.FAILED
    assert len(videos(batch)) == 6


def test_what_cannot_be_written_failed(batch, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(batch_run, "write_clip", full)
    maker = Maker()
    assert make(batch, maker, give_up=3) is Outcome.FAILED
    assert len(maker.made) == 3  # a full disk is not the prompts: the other five are not paid for
    assert videos(batch) == []


def test_stop_comes_between_clips(batch):
    asked = iter([False, False, True])
    assert make(batch, Maker(), stop=lambda: next(asked)) is Outcome.STOPPED
    assert events(batch, "begin") == events(batch, "done") == [item.file for item in batch.items[:2]]


def test_killed_after_the_rename_is_recovered_and_not_made_again(batch):
    make(batch, Maker(), stop=iter([False, False, True]).__next__)
    path = batch.folder.manifest(batch.shard)
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line).get("file") != batch.items[1].file or '"done"' not in line]
    path.write_text("".join(kept[:-1]))  # neither the clip's line nor the end
    maker = Maker()
    assert make(batch, maker) is Outcome.DONE
    assert (PROMPTS[0], 1) not in maker.made
    assert events(batch, "recovered") == [batch.items[1].file]
    assert Counter(events(batch, "done", "recovered")) == {item.file: 1 for item in batch.items}


def test_torn_lines_are_skipped_and_what_follows_them_is_not(batch):
    path = batch.folder.manifest(batch.shard)
    path.write_bytes(b'{"event": "done", "time": 1, "file": "a"}\n{"event": "do')
    manifest = Manifest(path)
    manifest.append("begin", file="b")
    manifest.close()
    path.write_bytes(path.read_bytes() + b"\xff\xfe[]\n3\n{}\n")
    assert [(e["event"], e["file"]) for e in read_events(path)] == [("done", "a"), ("begin", "b")]


def test_half_a_clip_of_a_killed_process_goes(batch):
    work = batch.folder.work(batch.shard)
    other = batch.folder.work(Shard(1, 2))
    for folder in (work, other):
        (folder / "0").mkdir(parents=True)
        (folder / "0" / ".tmp-0123.mp4").write_bytes(b"half")
    make(batch, Maker())
    assert not list(work.rglob("*.mp4"))
    assert list(other.rglob("*.mp4"))  # another shard's is its own affair


# What a process that works on a shard holds, without its imports.
HOLD = """
import fcntl, sys
with open(sys.argv[1], "a+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def hold(batch):
    """Lock a shard in another process, which is where locks count."""
    held = []

    def start(shard):
        command = [sys.executable, "-c", HOLD, str(batch.folder.manifest(shard).with_suffix(".lock"))]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        held.append(process)
        assert process.stdout.readline() == "locked\n"
        return process

    yield start
    for process in held:
        process.kill()
        process.communicate()


def test_a_shard_has_one_process_and_a_batch_one_count(batch, hold):
    Manifest(batch.folder.manifest(Shard(0, 2))).append("start", host="n7", pid=12, job="34_0")
    process = hold(Shard(0, 2))
    assert batch.folder.is_locked(Shard(0, 2))
    with pytest.raises(ShardLocked, match="process 12 on n7, job 34_0"):
        make(batch, Maker(), shard=Shard(0, 2))
    with pytest.raises(ShardLocked, match="allowed meanwhile: shards=2"):
        make(batch, Maker(), shard=Shard(0, 1))
    assert make(batch, Maker(), shard=Shard(1, 2)) is Outcome.DONE
    process.kill()
    process.wait()
    assert not batch.folder.is_locked(Shard(0, 2))  # the kernel has freed it
    assert make(batch, Maker(), shard=Shard(0, 2)) is Outcome.DONE
