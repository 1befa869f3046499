"""One shard's books, kept by rank 0 alone: what is to do, what was begun, what became of it."""

import hashlib
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from tapvideo.batch.items import Item
from tapvideo.batch.store import BatchFolder, Manifest, Shard, read_events


class Outcome(StrEnum):
    """How a shard ended."""

    DONE = "done"
    """Every clip of it is there."""
    FAILED = "failed"
    """Some are not, for the errors that the manifest has."""
    STOPPED = "stopped"
    """It was told to; the same command goes on."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one clip."""

    item: Item
    seconds: dict[str, float] = field(default_factory=dict)
    size: int = 0
    sha256: str = ""
    error: str | None = None
    """None where the clip is there."""


@dataclass(slots=True)
class Books:
    """What is left of a shard; clips that failed before come last."""

    folder: BatchFolder
    manifest: Manifest
    total: int
    todo: list[Item]
    should_stop: Callable[[], bool]
    give_up: int
    num_done: int = 0
    num_failed: int = 0
    failed_in_a_row: int = 0

    def next(self, count: int) -> list[Item] | Outcome:
        """The next clips, up to `count` of them and noted as begun, or how the shard ends."""
        if not self.todo:
            return Outcome.FAILED if self.num_failed else Outcome.DONE
        if self.should_stop():
            return Outcome.STOPPED
        if self.failed_in_a_row >= self.give_up:
            return Outcome.FAILED
        chosen, self.todo = self.todo[:count], self.todo[count:]
        for item in chosen:
            self.manifest.append("begin", file=item.file)
        return chosen

    def note(self, result: Result) -> None:
        """Write down what became of a clip."""
        file = result.item.file
        if result.error is not None:
            self.num_failed += 1
            self.failed_in_a_row += 1
            self.manifest.append("failed", file=file, seed=result.item.seed, error=result.error)
            return
        self.num_done += 1
        self.failed_in_a_row = 0
        self.manifest.append(
            "done", file=file, seed=result.item.seed, seconds=result.seconds, bytes=result.size, sha256=result.sha256
        )

    def end(self, outcome: Outcome) -> str:
        """Write down how the shard ended, and say it."""
        self.manifest.append("end", outcome=outcome.value)
        told = f"{outcome}: {self.num_done} of {self.total} clips are there, {self.num_failed} failed"
        if self.failed_in_a_row >= self.give_up and self.todo:
            told += f"; given up after {self.failed_in_a_row} failures in a row (give_up={self.give_up})"
        return told


@contextmanager
def open_books(
    folder: BatchFolder,
    shard: Shard,
    items: list[Item],
    *,
    should_stop: Callable[[], bool],
    give_up: int,
    facts: dict[str, Any],
) -> Iterator[Books]:
    """Lock a shard, see what is there, and keep its books for the length of a block.

    Args:
        folder: of the batch.
        shard: which part.
        items: all clips of the batch.
        should_stop: asked before every clip.
        give_up: failures in a row after which to stop.
        facts: what to note about this process.

    Raises:
        ShardLocked: if another process works on these clips.
        ConfigError: if the file system has no locks.
    """
    with folder.locked(shard):
        own = shard.of(items)
        events = read_events(folder.manifest(shard))
        there = {entry.name for entry in os.scandir(folder.videos)}
        manifest = Manifest(folder.manifest(shard))
        try:
            _start(manifest, facts)
            _recover(manifest, folder, [item for item in own if item.file in there], events)
            todo = _in_order(own, there, events)
            yield Books(folder, manifest, len(own), todo, should_stop, give_up, num_done=len(own) - len(todo))
        finally:
            manifest.close()


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _start(manifest: Manifest, facts: dict[str, Any]) -> None:
    job, restarts = os.environ.get("SLURM_JOB_ID"), int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    if os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ.get('SLURM_ARRAY_TASK_ID')}"
    host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    manifest.append("start", host=host, pid=os.getpid(), job=job, restarts=restarts, **facts)


def _recover(manifest: Manifest, folder: BatchFolder, there: list[Item], events: list[dict[str, Any]]) -> None:
    """List the videos that are there and were not listed: their process was killed after the rename."""
    listed = {event.get("file") for event in events if event["event"] in ("done", "recovered")}
    for item in there:
        if item.file not in listed:
            path = folder.videos / item.file
            sha256 = file_digest(path)
            manifest.append("recovered", file=item.file, seed=item.seed, bytes=path.stat().st_size, sha256=sha256)


def _in_order(own: list[Item], there: set[str], events: list[dict[str, Any]]) -> list[Item]:
    """What is not there: first what was not tried, or was cut off, then what failed."""
    failed = {event.get("file") for event in events if event["event"] == "failed"}
    missing = [item for item in own if item.file not in there]
    return sorted(missing, key=lambda item: item.file in failed)
