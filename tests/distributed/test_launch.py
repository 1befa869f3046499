"""`torchrun launch/generate.py`: one folder, one voice, and an end when a rank dies."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tapvideo.video_io import read_mp4

ROOT = Path(__file__).parents[2]
LAUNCHER = str(ROOT / "launch" / "generate.py")
QUIET = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def torchrun(ranks, overrides):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", LAUNCHER]
    return subprocess.Popen(
        [*command, *overrides], env=QUIET, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def alone(*commands):
    """Ranks started one by one, with what `torchrun` would put in their environment; rank 0 keeps the store."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**QUIET, "WORLD_SIZE": str(len(commands)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, command in enumerate(commands)
    ]


def finish(process, timeout=240):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


@pytest.fixture
def overrides(random_overrides):
    return [o for o in random_overrides if not o.startswith("verbose")]


def test_two_ranks_write_what_one_writes(overrides, tmp_path):
    overrides = [*overrides, "compare=true", "quality=0"]  # a lossy encoder makes much of one level of rounding
    code, out, err = finish(torchrun(2, overrides))
    assert code == 0, err
    (folder,) = (tmp_path / "outputs").iterdir()
    two = json.loads((folder / "run.json").read_text())
    assert two["mesh"] == {"dp": 1, "cfg": 1, "sp": 2}
    assert two["messages"]["forecast"].keys() == {"output"}  # all that a forecast step tells
    assert out.count("ranks: dp 1 x cfg 1 x sp 2") == out.count("report.html") == 1
    assert err.count("baseline:   0%") == err.count("default-uncalibrated:   0%") == 1  # one bar each, of one rank

    shared = read_mp4(folder / two["clips"][0]["video"])
    single = subprocess.run([sys.executable, LAUNCHER, *overrides], env=QUIET, check=True, timeout=240)
    assert single.returncode == 0
    assert [p.name for p in (tmp_path / "outputs").iterdir()] == [folder.name]
    assert (read_mp4(folder / two["clips"][0]["video"]) - shared).abs().max() <= 3 / 255


def test_a_rank_that_is_killed_ends_the_run(overrides, tmp_path):
    process = torchrun(2, [*(o for o in overrides if not o.startswith("steps")), "steps=2000"])
    victim = wait_for_rank(process, 1)
    victim.kill()
    killed = time.monotonic()
    code, out, err = finish(process)
    assert code != 0
    assert time.monotonic() - killed < 60
    # whichever comes first: a collective that fails, or torchrun's signal to the rank that is left
    lost = "tapvideo-generate: rank 0: another rank of this run does not answer"
    assert lost in err or "tapvideo-generate: told to stop (SIGTERM; if by torchrun" in err
    assert not list(tmp_path.rglob("*.mp4*"))
    assert "report.html" not in out


def wait_for_rank(process, rank):
    """The process of a rank, once the denoising loop runs."""
    while True:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        if "seed 0" in line:
            break
    time.sleep(2)
    children = psutil.Process(process.pid).children()
    return next(child for child in children if child.environ().get("RANK") == str(rank))


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        ("prompt=a red circle", "prompt=a circle moving left", "prompt differs between ranks"),
        ("parallel.cfg=2", "parallel.sp=2", "parallel differs between ranks"),  # whose groups would never meet
    ],
)
def test_ranks_that_were_started_for_different_things_do_not_wait_for_each_other(overrides, first, second, named):
    processes = alone(*([LAUNCHER, *overrides, override] for override in (first, second)))
    results = [finish(process) for process in processes]
    told = "".join(err for _, _, err in results)
    assert sorted(code for code, _, _ in results) == [1, 2], told
    assert told.count(named) == 1
    assert "Traceback" not in told


TORN = """
import atexit, os, sys, time
import torch
from tapvideo.cli.entry import complain, enter
from tapvideo.parallel.config import ParallelConfig
from tapvideo.parallel.launch import Hushed, RankFailed, joined

def app():
    try:
        with joined(ParallelConfig(sp=2), torch.device("cpu"), {}):
            time.sleep(float(os.environ["RANK"]))  # the one that keeps the store is the first to go
            raise ValueError("torn")
    except RankFailed as failed:
        complain("name", str(failed))
        sys.exit(2)
    except Hushed:
        sys.exit(1)

atexit.register(os.abort)  # as a thread of the group may, at a bad moment
enter(app, "name")
"""


def test_a_rank_whose_group_is_torn_ends_with_its_own_code_and_leaves_the_other_the_store():
    results = [finish(process) for process in alone(["-c", TORN], ["-c", TORN])]
    assert [code for code, _, _ in results] == [2, 1]
    assert [err.splitlines()[-1:] for _, _, err in results] == [["name: rank 0: torn"], []]


def test_wrong_mesh_is_one_line_with_what_is_allowed(overrides):
    code, _, err = finish(torchrun(2, [*overrides, "parallel.sp=3"]))
    assert code != 0
    ours = [line for line in err.splitlines() if line.startswith("tapvideo-generate:")]
    assert len(ours) == 1
    assert "parallel.sp=3 makes 3 ranks, and there are 2" in ours[0]


def test_sigterm_ends_all_ranks(overrides, tmp_path):
    process = torchrun(2, [*(o for o in overrides if not o.startswith("steps")), "steps=2000"])
    wait_for_rank(process, 0)
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process, timeout=60)
    assert code != 0
    assert "tapvideo-generate: " in err
    assert not list(tmp_path.rglob("*.mp4*"))
