"""One dimension's videos, scored by a process of VBench's own Python."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tapvideo.console import Console
from tapvideo.sample import RunFailed
from tapvideo.vbench.clips import Clip
from tapvideo.vbench.environment import WORKER, surroundings
from tapvideo.vbench.worker import EXIT_LOCKED, EXIT_UNSCORED


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Videos to score in one dimension."""

    python: str
    version: str
    """Of VBench."""
    cache_dir: Path
    dimension: str
    device: str
    batch: int
    out: Path
    """Where scores are appended."""
    items: list[tuple[Clip, dict[str, Any] | None]]
    """Videos, and what VBench is told besides the prompt."""


def run_job(job: Job, console: Console) -> None:
    """Score the videos of a job; what is scored before an error, or Ctrl-C, stays.

    Raises:
        RunFailed: if VBench's process dies, or another one works on the same file.
    """
    log = job.out.with_suffix(".log")
    with surroundings(job.cache_dir, job.dimension) as environment, TemporaryDirectory() as scratch:
        task = Path(scratch) / "job.json"
        task.write_text(json.dumps(_task(job)), encoding="utf-8")
        with log.open("ab") as errors:
            command = [job.python, str(WORKER), "score", str(task)]
            process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors)
            try:
                code = _follow(process, job.dimension, console)
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
    if code == EXIT_LOCKED:
        raise RunFailed(f"{job.dimension}: another process scores the same videos ({job.out}); wait for it, or end it")
    if code not in (0, EXIT_UNSCORED):
        raise RunFailed(f"{job.dimension}: VBench ended with code {code} ({_last_line(log)}); all it said is in {log}")


def _task(job: Job) -> dict[str, Any]:
    items = [
        {"sha256": clip.sha256, "prompt": clip.prompt, "path": str(clip.path.absolute()), "auxiliary_info": hints}
        for clip, hints in job.items
    ]
    stamp = {"vbench": job.version, "dimension": job.dimension}
    return {
        "dimension": job.dimension,
        "stamp": stamp,
        "device": job.device,
        "batch": job.batch,
        "out": str(job.out.absolute()),
        "items": items,
    }


def _follow(process: subprocess.Popen[bytes], dimension: str, console: Console) -> int:
    """Print the worker's own lines; VBench prints many more."""
    assert process.stdout is not None
    for line in process.stdout:
        text = line.decode(errors="replace").rstrip()
        if text.startswith(f"{dimension}: "):
            console.say(text)
    return process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"
