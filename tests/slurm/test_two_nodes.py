"""torchrun on two nodes of two ranks each, through the templates."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_cluster import wait_until

from tapvideo.batch.store import BatchFolder, Shard, read_events
from tapvideo.video_io import read_mp4

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
TWO_BY_TWO = ["--nodes=2", "--gpus-per-node=2", "--cpus-per-task=2"]


def logs(folder):
    return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in folder.rglob("*.out"))


def test_four_ranks_on_two_nodes_make_what_one_makes(slurm, submit, tmp_path):
    keys = ["prompt=a red circle moving left, on a blue background", "quality=0", "compare=false"]
    (job,) = submit("generate", *keys, *TWO_BY_TWO)
    assert slurm.wait(job) == ["COMPLETED"], logs(tmp_path)
    (folder,) = (tmp_path / "out").iterdir()
    record = json.loads((folder / "run.json").read_text())
    assert record["mesh"] == {"dp": 1, "cfg": 1, "sp": 4}
    (log,) = (folder / "logs").iterdir()
    assert log.read_text().count("ranks: dp 1 x cfg 1 x sp 4") == 1

    shared = read_mp4(folder / record["clips"][0]["video"])
    sizes = ["steps=4", "num_frames=5", "height=32", "width=32", f"output_dir={tmp_path / 'out'}"]
    command = [sys.executable, str(ROOT / "launch" / "generate.py"), *keys, *sizes]
    subprocess.run(command, env=slurm.env, check=True, capture_output=True, timeout=300)
    assert (read_mp4(folder / record["clips"][0]["video"]) - shared).abs().max() <= 3 / 255


def test_four_ranks_stop_together_and_go_on(slurm, submit, killed_python, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(f"a red circle {n}" for n in range(4)))
    folder, shard = BatchFolder(tmp_path / "out" / "ranks"), Shard(0, 1)
    (job,) = submit("batch", f"prompts={path}", "name=ranks", "parallel.cfg=2", *TWO_BY_TWO, **killed_python)

    def events(kind):
        return [e for e in read_events(folder.manifest(shard)) if e["event"] == kind]

    wait_until(lambda: len(events("begin")) == 3)
    slurm.call("scancel", "--batch", "--signal=USR1", job)
    wait_until(lambda: "asked to stop" in logs(tmp_path))
    (tmp_path / "gate").unlink()
    assert slurm.wait(job) == ["COMPLETED"], logs(tmp_path)
    assert [e["outcome"] for e in events("end")] == ["stopped", "done"], logs(tmp_path)
    assert [e["ranks"] for e in events("start")] == [4, 4]
    assert len(events("begin")) == len(events("done")) == len(list(folder.videos.iterdir())) == 4
