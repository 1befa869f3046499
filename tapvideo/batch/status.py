"""How far a batch is, from its files alone."""

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tapvideo.batch.items import Item
from tapvideo.batch.store import BatchFolder, Shard, read_events
from tapvideo.checks import ConfigError

_LATEST = 20  # clips that a rate is taken over


@dataclass(kw_only=True)
class ShardStatus:
    """One shard."""

    shard: int
    state: str
    """`running`, `loading`, `done`, `failed`, `stopped`, `killed` (it ended without a word) or `not begun`."""
    clips: int
    done: int
    failed: int
    """Not there, and the last try failed."""
    running: list[str]
    """Files being made."""
    missing: int
    """Not there, not failed, not running."""
    host: str | None = None
    job: str | None = None
    restarts: int = 0
    """Processes that have worked on it, but for the first."""
    clips_per_hour: float | None = None
    seconds_left: float | None = None
    """At this rate; none where it does not run."""


@dataclass(kw_only=True)
class BatchStatus:
    """A batch."""

    folder: str
    clips: int
    done: int
    running: int
    failed: int
    missing: int
    clips_per_hour: float | None
    """Of all shards that run."""
    seconds_left: float | None
    """Until the last running shard is through; none where clips are left that no running shard will make."""
    shards: list[ShardStatus] = field(default_factory=list[ShardStatus])
    errors: dict[str, str] = field(default_factory=dict[str, str])
    """Last error by file, of what failed."""
    strangers: list[str] = field(default_factory=list[str])
    """Files among the videos that the batch did not ask for."""

    def as_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def read_status(root: Path, *, now: float | None = None) -> BatchStatus:
    """Look at a batch; nothing is written and nobody is asked.

    Args:
        root: the folder of the batch, or its folder of videos.
        now: seconds since the epoch, for tests.

    Raises:
        ConfigError: if it is not the folder of a batch.
    """
    folder = BatchFolder(root if (root / "videos.jsonl").exists() or root.name != "videos" else root.parent)
    try:
        items = folder.items()
        there = {entry.name for entry in os.scandir(folder.videos)}
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{root} is not the folder of a batch ({error}); allowed: one that tapvideo-batch made"
        ) from error
    events = {shard: read_events(folder.manifest(shard)) for shard in folder.shards()}
    errors = _errors(events.values(), there)
    moment = time.time() if now is None else now
    shards = [
        _shard_status(folder, shard, items, there, errors, events.get(shard, []), moment)
        for shard in _current(folder, events)
    ]
    running = [s for s in shards if s.state == "running"]
    rates = [s.clips_per_hour for s in running if s.clips_per_hour]
    done = sum(item.file in there for item in items)
    in_work = sum(len(s.running) for s in shards)
    return BatchStatus(
        folder=str(folder.root),
        clips=len(items),
        done=done,
        running=in_work,
        failed=len(errors),
        missing=len(items) - done - in_work - len(errors),
        clips_per_hour=sum(rates) if rates else None,
        seconds_left=_seconds_left(shards),
        shards=shards,
        errors=errors,
        strangers=sorted(there - {item.file for item in items}),
    )


def _current(folder: BatchFolder, events: Mapping[Shard, list[dict[str, Any]]]) -> list[Shard]:
    """The shards of the latest count: a run may have gone on with more of them, or fewer."""
    if not events:
        return []
    running = [shard for shard in events if folder.is_locked(shard)]
    latest = max(running or events, key=lambda shard: max((e["time"] for e in events[shard]), default=0))
    return [Shard(number, latest.count) for number in range(latest.count)]


def _errors(all_events: Iterable[list[dict[str, Any]]], there: set[str]) -> dict[str, str]:
    """The last error of each clip whose last try failed, whichever shard tried it."""
    last: dict[str, dict[str, Any]] = {}
    for event in sorted((e for events in all_events for e in events if "file" in e), key=lambda e: e["time"]):
        last[event["file"]] = event
    return {
        file: str(event.get("error"))
        for file, event in last.items()
        if event["event"] == "failed" and file not in there
    }


def _shard_status(
    folder: BatchFolder,
    shard: Shard,
    items: list[Item],
    there: set[str],
    errors: Mapping[str, str],
    events: list[dict[str, Any]],
    now: float,
) -> ShardStatus:
    own = [item.file for item in shard.of(items)]
    starts = [index for index, event in enumerate(events) if event["event"] == "start"]
    session = events[starts[-1] :] if starts else []
    locked = folder.is_locked(shard)
    done, failed = sum(file in there for file in own), sum(file in errors for file in own)
    ended = {event.get("file") for event in session if event["event"] in ("done", "failed")}
    begun = [event["file"] for event in session if event["event"] == "begin"]
    running = [file for file in begun if file not in ended and file not in there] if locked else []
    missing = len(own) - done - failed - len(running)
    rate = _rate(session, now if locked else None)
    return ShardStatus(
        shard=shard.number,
        state=_state(session, locked=locked),
        clips=len(own),
        done=done,
        failed=failed,
        running=running,
        missing=missing,
        host=session[0].get("host") if session else None,
        job=session[0].get("job") if session else None,
        restarts=max(0, len(starts) - 1),
        clips_per_hour=rate,
        seconds_left=(missing + len(running)) / rate * 3600 if locked and rate else None,
    )


def _state(session: list[dict[str, Any]], *, locked: bool) -> str:
    if not session:
        return "not begun"
    if locked:
        return "running" if any(event["event"] == "begin" for event in session) else "loading"
    return str(session[-1].get("outcome")) if session[-1]["event"] == "end" else "killed"


def _rate(session: list[dict[str, Any]], now: float | None) -> float | None:
    """Clips an hour, over the latest clips of a process; a clip that takes longer than those count slows it."""
    done = [event["time"] for event in session if event["event"] == "done"]
    first = next((event["time"] for event in session if event["event"] == "begin"), None)
    if not done or first is None:
        return None
    marks = [first, *done][-_LATEST - 1 :]
    span, clips = marks[-1] - marks[0], len(marks) - 1
    if now is not None and now - marks[-1] > span / clips:
        span = now - marks[0]
    return clips / span * 3600 if span > 0 else None


def _seconds_left(shards: list[ShardStatus]) -> float | None:
    open_shards = [s for s in shards if s.missing or s.running]
    if not open_shards:
        return 0.0 if shards else None
    if any(s.seconds_left is None for s in open_shards):
        return None
    return max(s.seconds_left or 0.0 for s in open_shards)
