"""A batch on a real cluster through everything that happens to batches: each clip there once, none torn, none lost."""

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path

import pytest
from slurm_cluster import wait_until

from tapvideo.batch.items import read_items
from tapvideo.batch.status import read_status
from tapvideo.batch.store import BatchFolder, Shard, read_events
from tapvideo.video_io import video_info

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slurm, pytest.mark.slow]
PROMPTS = [
    "a red circle moving left on a blue striped background", "A red circle moving left on a blue striped background",
    "a/b", "../../up", "-rf", "x" * 300, "一只猫", "a green star",
]  # fmt: skip
SHARDS = 3
SEEDS = [0, 1, 2]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    return path


def files(folder, number, *kinds):
    return [e["file"] for e in read_events(folder.manifest(Shard(number, SHARDS))) if e["event"] in kinds]


def test_killed_preempted_stopped_and_submitted_twice(slurm, submit, prompts, killed_python, tmp_path):
    items = read_items(str(prompts), SEEDS)
    folder = BatchFolder(tmp_path / "out" / "faults")
    run = ["batch", f"prompts={prompts}", "seeds=[0,1,2]", f"shards={SHARDS}", "name=faults"]
    victim = Shard(2, SHARDS).of(items)[1].file
    first, score = submit(*run, "--score=vbench", KILL_AFTER_RENAME=victim, **killed_python)

    again = submit(*run, check=False)
    assert again.returncode == 4
    assert f"faults is in the queue already, as job {first};" in again.stderr
    wait_until(lambda: all(len(files(folder, number, "begin")) == 3 for number in (0, 1)))
    second = slurm.call(  # past the check and past singleton: there are locks
        "sbatch", "--parsable", "--array=0-1", "--cpus-per-task=1", f"--output={tmp_path}/second-%a.out",
        ROOT / "launch/slurm/batch.sbatch", *run[1:], "steps=4", "num_frames=5", "height=32", "width=32",
        f"output_dir={tmp_path / 'out'}", TAPVIDEO_PYTHON=sys.executable,
    )  # fmt: skip
    assert slurm.wait(second) == ["FAILED", "FAILED"]
    assert f"is being made by process {starts(folder, 0)[0]['pid']} on n" in (tmp_path / "second-0.out").read_text()

    slurm.call("scontrol", "requeue", f"{first}_1")  # preemption, with a clip in work
    slurm.call("scancel", "--batch", "--signal=USR1", f"{first}_0")  # the time limit is near
    wait_until(lambda: "asked to stop" in logs(folder.root))
    (tmp_path / "gate").unlink()
    assert slurm.wait(first) == ["COMPLETED", "COMPLETED", "FAILED"]
    assert slurm.wait(score) == ["CANCELLED"]  # of what is not whole no score is made
    assert [event["restarts"] for number in (0, 1) for event in starts(folder, number)] == [0, 1, 0, 1]

    state = read_status(folder.root)
    assert [shard.state for shard in state.shards] == ["done", "done", "killed"]
    assert (folder.videos / victim).is_file()
    assert victim not in files(folder, 2, "done")
    (third,) = submit(*run, "--array=2")  # the part that failed
    assert slurm.wait(third) == ["COMPLETED"]
    (fourth,) = submit(*run)  # nothing is left to do
    assert slurm.wait(fourth) == ["COMPLETED"] * SHARDS

    figures = check(folder, items, victim)
    print(f"\nfault test: {figures}")


def starts(folder, number):
    return [e for e in read_events(folder.manifest(Shard(number, SHARDS))) if e["event"] == "start"]


def check(folder, items, victim):
    """Every clip there once, none torn, none lost; figures of what it took."""
    videos = {path.name: path for path in folder.videos.iterdir()}
    assert videos.keys() == {item.file for item in items}
    assert all(video_info(path).frames == 5 for path in videos.values())
    assert not [path for path in folder.root.rglob("*.mp4") if path.parent != folder.videos]
    events = [e for number in range(SHARDS) for e in read_events(folder.manifest(Shard(number, SHARDS)))]
    listed = {e["file"]: e for e in events if e["event"] in ("done", "recovered")}
    assert Counter(e["file"] for e in events if e["event"] in ("done", "recovered")) == dict.fromkeys(videos, 1)
    torn = [f for f, e in listed.items() if hashlib.sha256(videos[f].read_bytes()).hexdigest() != e["sha256"]]
    assert torn == []
    assert [f for f, e in listed.items() if e["event"] == "recovered"] == [victim]
    begun = Counter(e["file"] for e in events if e["event"] == "begin")
    twice = [file for file, count in begun.items() if count > 1]
    assert twice == [Shard(1, SHARDS).of(items)[2].file]  # what the preempted shard had in work
    assert begun[twice[0]] == 2
    assert {(i.file, i.prompt, i.seed) for i in folder.items()} == {(i.file, i.prompt, i.seed) for i in items}
    status = read_status(folder.root)
    assert (status.done, status.running, status.failed, status.missing) == (len(items), 0, 0, 0)
    assert status.strangers == []
    return {
        "items": len(items), "there": len(videos), "torn": len(torn), "lost": len(items) - len(videos),
        "listed twice": 0, "begun twice": len(twice), "killed": 1, "preempted": 1, "stopped": 1,
        "processes": sum(e["event"] == "start" for e in events),
    }  # fmt: skip


def test_a_whole_batch_is_scored(slurm, submit, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text(PROMPTS[0])
    make, score = submit("batch", f"prompts={path}", "name=scored", "--score=scenes")
    assert slurm.wait(make, score) == [["COMPLETED"], ["COMPLETED"]], logs(tmp_path)
    assert list((tmp_path / "out" / "scored" / "scores").rglob("results.json"))


def logs(folder):
    return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in folder.rglob("*.out"))
