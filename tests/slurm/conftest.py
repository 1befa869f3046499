"""A cluster for all tests of this folder, and the commands of a run on it."""

import os
import stat
import sys
from pathlib import Path

import pytest
from slurm_cluster import missing_programs, running_cluster

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def slurm():
    missing = missing_programs()
    if missing:
        packages = "apt-get install --no-install-recommends slurmctld slurmd slurm-client munge"
        pytest.skip(f"SLURM is not installed here ({', '.join(missing)} missing): {packages}")
    with running_cluster() as cluster:
        cluster.env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        yield cluster


@pytest.fixture
def submit(slurm, tmp_path):
    """`tapvideo-submit` of small clips into `tmp_path/out`; the numbers of the jobs."""
    clip = ["steps=4", "num_frames=5", "height=32", "width=32", f"output_dir={tmp_path / 'out'}"]
    small = ["--time=30", "--cpus-per-task=1"]

    def call(kind, *arguments, check=True, **environment):
        flags = [*small, *(f"--score-flag={flag}" for flag in small)]
        command = [sys.executable, ROOT / "launch" / "submit.py", kind, *clip, *flags, *arguments]
        done = slurm.call(*command, check=False, timeout=300, **environment)
        assert not check or done.returncode == 0, done.stderr
        jobs = [line.partition("=")[2] for line in done.stdout.splitlines() if line.startswith(("# MAKE=", "# SCORE="))]
        return jobs if check else done

    return call


@pytest.fixture
def killed_python(tmp_path):
    """The environment of jobs that wait at `tmp_path/gate`, see tests/support/slurm_killed.py."""
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT / "tests/support/slurm_killed.py"} "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "gate").touch()
    return {"TAPVIDEO_PYTHON": str(path), "GATE": str(tmp_path / "gate")}


@pytest.fixture(autouse=True)
def _no_leftovers(monkeypatch):
    """A job of the test must not take this process for one of its tasks."""
    for name in [n for n in os.environ if n.startswith("SLURM_")]:
        monkeypatch.delenv(name)
