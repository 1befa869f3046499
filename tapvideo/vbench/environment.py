"""VBench's own Python: found, asked what it can do, and started with nothing left to fetch."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tapvideo.checks import ConfigError
from tapvideo.vbench import weights

WORKER = Path(__file__).with_name("worker.py")
_MARKER = "VBENCH-DESCRIBES "
_NOWHERE = "http://127.0.0.1:9"  # the port of `discard`: what tries to download fails at once, and says so
_HOW = "the command that makes VBench's environment is in docs/vbench.md"


@dataclass(frozen=True, slots=True)
class Located:
    """The VBench of an interpreter."""

    python: str
    """The interpreter."""
    version: str
    """Of the package; scores are kept under it."""
    suite: Path
    """VBench's list of prompts."""


@dataclass(frozen=True, slots=True)
class Described:
    """What VBench's Python says of itself once it has imported everything."""

    versions: dict[str, str]
    cuda: str | None
    """Name of the GPU, if there is one."""


def locate(python: str | None) -> Located:
    """Find an interpreter's VBench, without importing it.

    Raises:
        ConfigError: if there is no such interpreter, or it has no VBench.
    """
    said = _ask(python, Path(), "locate")
    return Located(_interpreter(python), said["vbench"], Path(said["suite"]))


def describe(python: str | None, cache_dir: Path, dimensions: list[str]) -> Described:
    """Ask an interpreter what its VBench can do.

    Args:
        python: the interpreter; None for the one that runs this.
        cache_dir: where weights are.
        dimensions: which to import, with weights that are there: some modules fetch theirs on import.

    Raises:
        ConfigError: if VBench, or a dimension, cannot be imported.
    """
    said = _ask(python, cache_dir, "describe", *dimensions)
    errors: dict[str, str] = said["errors"]
    if errors:
        why = "; ".join(f"{name}: {error[:200]}" for name, error in errors.items())
        rest = [name for name in dimensions if name not in errors]
        allowed = f"; allowed without: dimensions=[{','.join(rest)}]" if rest else f"; {_HOW}"
        raise ConfigError(f"dimensions: {_interpreter(python)} cannot import {why}{allowed}")
    return Described({name: said[name] for name in ("torch", "python")}, said["cuda"])


def _interpreter(python: str | None) -> str:
    return str(Path(python).expanduser()) if python else sys.executable


def _ask(python: str | None, cache_dir: Path, *arguments: str) -> dict[str, Any]:
    chosen = _interpreter(python)
    with surroundings(cache_dir) as environment:
        command = [chosen, str(WORKER), *arguments]
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, errors="replace", check=False
            )
        except OSError as error:
            raise ConfigError(f"python={python!r} cannot be started ({error}); {_HOW}") from error
    found = [line for line in done.stdout.splitlines() if line.startswith(_MARKER)]
    if done.returncode or not found:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ConfigError(f"python={python!r}: {chosen} has no VBench that works ({last[:200]}); {_HOW}")
    return json.loads(found[-1].removeprefix(_MARKER))


@contextmanager
def surroundings(cache_dir: Path, dimension: str = "") -> Iterator[dict[str, str]]:
    """Environment variables for VBench, with a folder for torch.hub that lasts as long as the block."""
    with TemporaryDirectory(prefix="tapvideo-vbench-") as scratch:
        environment = {
            **os.environ,
            "VBENCH_CACHE_DIR": str(cache_dir.absolute()),
            "HF_HOME": str(cache_dir.absolute() / "huggingface"),
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "TORCH_HOME": scratch,
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "ignore",
        }
        environment |= dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), _NOWHERE)
        if dimension == "subject_consistency":
            _link_dino(cache_dir, Path(scratch))
        if dimension == "motion_smoothness":  # amt-s.pth holds more than tensors, which torch >= 2.6 refuses
            environment["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
        yield environment


def check_weights(cache_dir: Path, dimensions: list[str]) -> None:
    """Refuse to start without weights.

    Raises:
        ConfigError: naming what is missing.
    """
    absent = [one for one in weights.look_up(cache_dir, dimensions, digests=False) if one.problem]
    if absent:
        said = ", ".join(f"{one.weights.path} ({one.problem})" for one in absent)
        lacking = {name for one in absent for name in one.weights.dimensions}
        rest = [name for name in dimensions if name not in lacking]
        allowed = f"; without them: dimensions=[{','.join(rest)}]" if rest else ""
        raise ConfigError(f"cache_dir={str(cache_dir)!r} lacks {said}; weights=list tells where to get them{allowed}")


def _link_dino(cache_dir: Path, torch_home: Path) -> None:
    """torch.hub's DINO looks in TORCH_HOME alone, whatever VBench tells it."""
    checkpoints = torch_home / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    name = "dino_vitbase16_pretrain.pth"
    (checkpoints / name).symlink_to((cache_dir / "dino_model" / name).absolute())
