"""A shard from its list to its videos: stopped, killed or failed, it makes every clip once and loses none."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest
import torch
from hydra import compose, initialize_config_dir
from ranks import run_ranks

from tapvideo import generate
from tapvideo.batch import run as batch_run
from tapvideo.batch.config import BatchConfig, clip_facts, differences, run_path
from tapvideo.batch.items import read_items
from tapvideo.batch.run import Batch, make_clips, prepare, run
from tapvideo.batch.shard import Outcome, open_books
from tapvideo.batch.store import BatchFolder, Manifest, Shard, ShardLocked, read_events
from tapvideo.cli.batch import as_override, main
from tapvideo.config import ConfigError, config_dir, from_hydra
from tapvideo.console import Console
from tapvideo.outputs import Made
from tapvideo.parallel.config import ParallelConfig
from tapvideo.parallel.topology import alone, build_topology
from tapvideo.sample import RunFailed, Sample, StageSeconds
from tapvideo.video_io import read_mp4

QUIET = Console(verbose=False)
PROMPTS = ["a/b", "..", "a red circle", "A red circle"]


@pytest.fixture
def overrides(saved_pipeline, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return [
        f"model.weights={saved_pipeline}", f"output_dir={tmp_path / 'out'}", "model.name=random", "height=32",
        "width=32", "num_frames=5", "steps=2", f"prompt_file={path}", "name=run",
    ]  # fmt: skip


def batch_config(*overrides):
    if not any(override.startswith("tap=") for override in overrides):
        overrides = ("tap=paper", *overrides)
    with initialize_config_dir(str(config_dir().resolve()), version_base="1.3"):
        return from_hydra(BatchConfig, compose("batch", list(overrides)))


@pytest.fixture
def batch(overrides):
    batch = prepare(batch_config(*overrides, "seeds=[0,1]"))
    batch.folder.claim(batch.facts, batch.items, {})
    return batch


class Maker:
    """Grey clips at once; fails for prompts that it is told to fail for."""

    def __init__(self, bad=(), error=None):
        self.bad, self.made = bad, []
        self.error = error or RunFailed("NaN or infinite latents")

    def make_clip(self, job):
        self.made.append((job.prompt, job.seed))
        if job.prompt in self.bad:
            raise self.error
        frames = torch.full((5, 32, 32, 3), 0.1 * job.seed)
        return Made(Sample(frames, torch.zeros(1, 4, 2, 4, 4), StageSeconds(0.0, 1.0, 0.0)), None, None, [], [])


def make(batch, maker, *, stop=lambda: False, shard=None, give_up=5):
    shard = shard or batch.shard
    with open_books(batch.folder, shard, batch.items, should_stop=stop, give_up=give_up, facts={}) as books:
        outcome = make_clips(batch, maker, alone(), books, QUIET)
        books.end(outcome)
    return outcome


def events(batch, *kinds, shard=None):
    found = read_events(batch.folder.manifest(shard or batch.shard))
    return [event["file"] for event in found if event["event"] in kinds]


def videos(batch):
    return sorted(os.listdir(batch.folder.videos))


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


def test_another_configuration_is_refused_by_name(batch, overrides):
    with pytest.raises(ConfigError, match=r"holds a batch of another configuration: steps=3 \(there: 2\);"):
        prepare(batch_config(*overrides, "seeds=[0,1]", "steps=3"))
    with pytest.raises(ConfigError, match=r"tap\.orders=\[0\] \(there: \[0, 1, 2\]\)"):
        prepare(batch_config(*overrides, "seeds=[0,1]", "tap.orders=[0]"))
    with pytest.raises(ConfigError, match=r"prompts='[0-9a-f]+' .*, seeds="):
        prepare(batch_config(*overrides, "seeds=[0]"))
    with pytest.raises(ConfigError, match="holds a batch of another"):
        batch.folder.claim({**batch.facts, "weights": "others"}, batch.items, {})
    for free in ("shards=3", "verbose=true", "parallel.dp=2", "stop_file=x", "give_up=1"):
        assert prepare(batch_config(*overrides, "seeds=[0,1]", free)).folder == batch.folder
    assert not list(batch.folder.root.glob(".tmp*"))


def test_differences_are_named_by_their_whole_key():
    assert differences({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}}) == [
        "a.c=2 (there: 4)", "d=3 (there: None)",
    ]  # fmt: skip


def test_the_folder_follows_from_what_shapes_the_clips(overrides):
    def path(*more):
        config = batch_config(*overrides, "name=null", *more)
        return run_path(config, read_items(config.prompt_file, config.seeds))

    assert path().name.startswith("random-paper-batch-")
    assert path() == path("shards=4", "shard=3", "verbose=true")
    assert len({path(), path("seeds=[1]"), path("steps=3"), path("tap=off")}) == 4


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("shard=2", r"shard=2 is not one of the shards; allowed: 0 to 0 \(shards=1\)"),
        ("shards=0", "shards=0 is too small"),
        ("prompt=x", "prompt='x' is for one clip"),
        ("compare=true", "compare=True is not for batches"),
        ("name=../x", "name='../x' is no name of a folder"),
        ("+typo=1", "typo"),
        ("give_up=0", "give_up=0 is too small"),
    ],
)
def test_bad_values_are_refused(overrides, override, told):
    with pytest.raises(ConfigError, match=told):
        batch_config(*overrides, override)


def test_prompts_is_a_list_although_hydra_has_a_folder_of_that_name():
    assert as_override("prompts=a b.txt") == "prompt_file=a b.txt"
    assert as_override("seeds=[0]") == "seeds=[0]"
    assert as_override("negative_prompt=a, b") == "negative_prompt='a, b'"


def test_run_loads_once_makes_all_and_then_loads_nothing(overrides, monkeypatch, capsys):
    loaded = []
    load = generate.load_pipeline
    monkeypatch.setattr(generate, "load_pipeline", lambda config: loaded.append(1) or load(config))
    config = batch_config(*overrides)
    assert run(config) is Outcome.DONE
    assert run(config) is Outcome.DONE
    assert loaded == [1]
    out = capsys.readouterr().out
    assert "[4/4]" in out
    assert out.count("4 of 4 clips are there") == 3
    folder = prepare(config).folder
    record = json.loads(folder.facts.read_text())
    assert record["config"]["steps"] == 2
    assert {"torch", "tapvideo"} <= set(record["versions"])
    done = [e for e in read_events(folder.manifest(Shard(0, 1))) if e["event"] == "done"]
    assert set(done[0]["seconds"]) == {"text", "denoise", "vae", "write"}
    assert folder.items() == read_items(config.prompt_file, [0])


def test_dry_run_writes_nothing(overrides, capsys, tmp_path):
    assert run(batch_config(*overrides, "dry_run=true", "shards=2")) is Outcome.DONE
    assert "4 clips, 2 in shard 0000-of-0002" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_stop_file_is_seen_before_anything_is_loaded(overrides, monkeypatch, tmp_path):
    monkeypatch.setattr(generate, "load_pipeline", None)
    stop = tmp_path / "stop here"
    stop.touch()
    config = batch_config(*overrides, f"stop_file='{stop}'")
    assert run(config) is Outcome.STOPPED
    prepare(config).folder.stop.touch()
    stop.unlink()
    assert run(config) is Outcome.STOPPED


def exit_code(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["tapvideo-batch", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    return left.value.code


@pytest.mark.parametrize(
    ("outcome", "code"), [(Outcome.DONE, 0), (Outcome.FAILED, 1), (Outcome.STOPPED, 3), (ShardLocked("x"), 4)]
)
def test_exit_code_tells(monkeypatch, outcome, code, capsys):
    def end(*_args, **_kwargs):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr("tapvideo.cli.batch.run", end)
    assert exit_code(monkeypatch, "prompts=p.txt", "seeds=[0,1]") == code


def test_bad_command_lines_end_in_one_line(monkeypatch, capsys):
    assert exit_code(monkeypatch, "prompts=nowhere.txt") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tapvideo-batch: prompts='nowhere.txt' cannot be read")
    assert exit_code(monkeypatch, "prompts=nowhere.txt", "+typo=1") == 2
    assert "typo" in capsys.readouterr().err


def _on_ranks(root, config, items, bad):
    os.environ["RANK"] = str(torch.distributed.get_rank())
    topology = build_topology(config.parallel, torch.device("cpu"))
    batch = Batch(config, items, BatchFolder(root), clip_facts(config, items))
    maker = Maker(bad=bad)
    if topology.world.rank:
        return make_clips(batch, maker, topology, None, QUIET), maker.made
    asked = []
    with open_books(
        batch.folder, batch.shard, items, should_stop=lambda: len(asked.append(1) or asked) > 3, give_up=9, facts={}
    ) as books:
        return make_clips(batch, maker, topology, books, QUIET), maker.made


@pytest.mark.parametrize(("dp", "per_rank"), [(1, [3, 3, 3, 3]), (2, [3, 3, 3, 3]), (4, [2, 2, 2, 2])])
def test_ranks_do_what_rank_0_decides(batch, dp, per_rank):
    """Rank 0 alone is asked to stop, before the fourth round; with dp=4 all is done after two."""
    config = batch_config(*_overrides(batch), f"parallel.dp={dp}")
    assert config.parallel == ParallelConfig(dp=dp)
    found = run_ranks(4, _on_ranks, batch.folder.root, config, batch.items, ("..",))
    assert len({outcome for outcome, _ in found}) == 1
    assert found[0][0] is (Outcome.FAILED if dp == 4 else Outcome.STOPPED)
    assert [len(made) for _, made in found] == per_rank
    begun = 8 if dp == 4 else 3 * dp
    assert events(batch, "begin") == [item.file for item in batch.items[:begun]]
    assert sorted(events(batch, "done")) == videos(batch)
    failed = [item.file for item in batch.items[:begun] if item.prompt == ".."]
    assert sorted(events(batch, "failed")) == failed
    assert len(videos(batch)) == begun - len(failed)


def _overrides(batch):
    config = batch.config
    return [
        f"model.weights={config.model.weights}", f"output_dir={config.output_dir}", "model.name=random", "height=32",
        "width=32", "num_frames=5", "steps=2", f"prompt_file={config.prompt_file}", "name=run", "seeds=[0,1]",
    ]  # fmt: skip
