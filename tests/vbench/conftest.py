"""The real VBench, in a folder beside this environment's packages: three wheels from PyPI, no dependencies."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

_PINS = Path(__file__).parents[2] / "eval" / "vbench-requirements.txt"
_OFFLINE = re.compile(
    "NewConnectionError|ConnectTimeout|Temporary failure|getaddrinfo|Network is unreachable|timed out"
)


@pytest.fixture(scope="session")
def vbench_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH: vbench, the OpenCV that it is pinned with, and the torchvision of this torch."""
    folder = tmp_path_factory.mktemp("vbench-packages")
    pins = [line for line in _PINS.read_text(encoding="utf-8").splitlines() if re.match("vbench|opencv", line)]
    torchvision = f"torchvision==0.{int(torch.__version__.split('.')[1]) + 15}.*"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--retries=1", "--timeout=30"]
    done = subprocess.run(
        [*pip, "--target", str(folder), *pins, torchvision], capture_output=True, text=True, check=False, timeout=600
    )
    if done.returncode and ("No module named pip" in done.stderr or _OFFLINE.search(done.stderr)):
        pytest.skip(f"VBench cannot be installed here: {done.stderr.strip().splitlines()[-1][:200]}")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def vbench_path(vbench_packages: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, with every process that is started finding it."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(vbench_packages), os.environ.get("PYTHONPATH", "")]))
    return vbench_packages
