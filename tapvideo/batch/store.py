"""A batch on disk: what it is, who works on it, what has happened. A clip is done if and only if its video is there."""

import fcntl
import json
import os
import re
import secrets
import shutil
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tapvideo.batch.config import differences
from tapvideo.batch.items import Item, index_text, read_index
from tapvideo.checks import ConfigError
from tapvideo.video_io import atomic_write_text, sync

_SHARD = re.compile(r"(\d+)-of-(\d+)\.jsonl")
_FLOCK = "hhqqi4x"  # struct flock of 64-bit Linux


class ShardLocked(RuntimeError):
    """Another process works on this shard, or on clips of it."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of a batch: every `count`-th clip from `number` on."""

    number: int
    count: int

    def __str__(self) -> str:
        """As its files are called, e.g. ``0003-of-0008``."""
        return f"{self.number:04d}-of-{self.count:04d}"

    def of(self, items: list[Item]) -> list[Item]:
        """Its clips."""
        return items[self.number :: self.count]


@dataclass(frozen=True, slots=True)
class BatchFolder:
    """The folder of a batch."""

    root: Path

    @property
    def videos(self) -> Path:
        """Finished videos and nothing else."""
        return self.root / "videos"

    @property
    def index(self) -> Path:
        """Which video is of which prompt and seed: `videos.jsonl`."""
        return self.root / "videos.jsonl"

    @property
    def facts(self) -> Path:
        """What shapes the clips: `run.json`."""
        return self.root / "run.json"

    @property
    def stop(self) -> Path:
        """Where it is there, every shard stops before its next clip."""
        return self.root / "STOP"

    def manifest(self, shard: Shard) -> Path:
        """What happened to a shard, a line of json an event."""
        return self.root / "shards" / f"{shard}.jsonl"

    def work(self, shard: Shard) -> Path:
        """Where a shard's clips are until they are whole."""
        return self.root / "work" / str(shard)

    def shards(self) -> list[Shard]:
        """Those that ever began."""
        names = (_SHARD.fullmatch(path.name) for path in (self.root / "shards").glob("*.jsonl"))
        return sorted((Shard(int(m[1]), int(m[2])) for m in names if m), key=lambda s: (s.count, s.number))

    def check(self, facts: Mapping[str, Any]) -> None:
        """Refuse to mix clips of different configurations.

        Raises:
            ConfigError: naming what is different from what the folder was begun with.
        """
        try:
            theirs = json.loads(self.facts.read_text(encoding="utf-8"))["config"]
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise ConfigError(f"name: {self.facts} is not the record of a batch ({error}); allowed: another") from error
        found = differences(facts, theirs)
        if found:
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            raise ConfigError(
                f"{self.root} holds a batch of another configuration: {', '.join(found[:3])}{more}; "
                "allowed: the same one, or another name or output_dir"
            )

    def claim(self, facts: Mapping[str, Any], items: list[Item], extra: Mapping[str, Any]) -> None:
        """Make the folder, or go on with it if it is of the same configuration.

        Args:
            facts: what shapes the clips.
            items: all of them.
            extra: what else to note about how it was begun.

        Raises:
            ConfigError: if it is of another configuration.
        """
        self.videos.mkdir(parents=True, exist_ok=True)
        (self.root / "shards").mkdir(exist_ok=True)
        record = json.dumps({"config": dict(facts), **extra}, indent=2) + "\n"
        temp = self.root / f".tmp-{secrets.token_hex(6)}.json"
        try:
            atomic_write_text(temp, record)
            os.link(temp, self.facts)  # unlike a rename it fails where another was first, and is whole at once
            sync(self.root)
        except FileExistsError:
            self.check(facts)
        finally:
            temp.unlink(missing_ok=True)
        if not self.index.is_file():  # the same text, whoever writes it
            atomic_write_text(self.index, index_text(items))

    def items(self) -> list[Item]:
        """All clips of the batch.

        Raises:
            OSError: if the folder has no index.
            ValueError: if its index cannot be read.
        """
        return read_index(self.index)

    def publish(self, made: Path, item: Item) -> None:
        """Put a finished video in its place; from the moment this returns it stays there."""
        os.replace(made, self.videos / item.file)
        sync(self.videos)

    @contextmanager
    def locked(self, shard: Shard) -> Iterator[None]:
        """The only process that works on a shard, for the length of a block; the kernel unlocks it, however that ends.

        Raises:
            ShardLocked: if another process does, or works on a shard of another count.
            ConfigError: if the file system has no locks.
        """
        with self._lock(shard).open("a+b") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise ShardLocked(f"shard {shard} of {self.root} is being made by {self._owner(shard)}") from None
            except OSError as error:
                raise ConfigError(
                    f"output_dir: {self.root} is on a file system without locks ({error}); allowed: others"
                ) from error
            for other in self.shards():
                if other.count != shard.count and self.is_locked(other):
                    raise ShardLocked(
                        f"shard {other} of {self.root} is being made by {self._owner(other)}, and shares clips with "
                        f"shard {shard}; allowed meanwhile: shards={other.count}"
                    )
            shutil.rmtree(self.work(shard), ignore_errors=True)  # half a clip of a process that was killed
            yield

    def is_locked(self, shard: Shard) -> bool:
        """Whether a process works on a shard; asks without taking the lock for an instant."""
        try:
            with self._lock(shard).open("rb") as file:
                question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
                answer = fcntl.fcntl(file, fcntl.F_GETLK, question)
        except OSError:
            return False
        return struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK

    def _lock(self, shard: Shard) -> Path:
        return self.root / "shards" / f"{shard}.lock"

    def _owner(self, shard: Shard) -> str:
        starts = [event for event in read_events(self.manifest(shard)) if event["event"] == "start"]
        if not starts:
            return "another process"
        job = f", job {starts[-1]['job']}" if starts[-1].get("job") else ""
        return f"process {starts[-1].get('pid')} on {starts[-1].get('host')}{job}"


class Manifest:
    """The events of one shard, written by its one process; each is on disk when `append` returns."""

    def __init__(self, path: Path) -> None:
        self._file: IO[bytes] = path.open("a+b", buffering=0)
        size = self._file.seek(0, os.SEEK_END)
        if size:
            self._file.seek(size - 1)
            if self._file.read(1) != b"\n":  # a line torn by a crash, which readers skip; ours begins on its own
                self._file.write(b"\n")
        else:
            sync(path.parent)

    def append(self, event: str, **values: Any) -> None:
        """Write one event."""
        line = json.dumps({"event": event, "time": round(time.time(), 3), **values}) + "\n"
        self._file.write(line.encode())
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """No more events."""
        self._file.close()


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of a shard, oldest first, without torn lines; none where there is no file."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str) and "time" in event:
            found.append(event)
    return found
