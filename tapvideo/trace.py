"""What happened on every step: kind, seconds, chosen predictors."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Int8
from torch import Tensor

from tapvideo.schedule import StepKind


@dataclass(slots=True)
class Stopwatch:
    """Seconds between two points of one device's stream, which never waits before `seconds` is asked."""

    device: torch.device
    _start: float | torch.cuda.Event | None = None
    _stop: float | torch.cuda.Event | None = None

    def start(self) -> None:
        """Mark the beginning."""
        self._start = self._now()

    def stop(self) -> None:
        """Mark the end."""
        self._stop = self._now()

    @property
    def seconds(self) -> float:
        """Elapsed seconds; on a GPU this waits for the end mark to be reached."""
        if isinstance(self._start, torch.cuda.Event) and isinstance(self._stop, torch.cuda.Event):
            self._stop.synchronize()
            return self._start.elapsed_time(self._stop) / 1e3
        if isinstance(self._start, float) and isinstance(self._stop, float):
            return self._stop - self._start
        raise RuntimeError("the stopwatch was not both started and stopped")

    def _now(self) -> float | torch.cuda.Event:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event


@dataclass(slots=True)
class StepRecord:
    """One pass of one branch through the stack."""

    branch: str
    step: int
    num_steps: int
    kind: StepKind
    sigma: float | None
    stack: Stopwatch
    """The whole stack: blocks on a full step, the forecast on a forecast step."""
    overhead: tuple[Stopwatch, ...] = ()
    """On a full step: what TAP adds to the blocks (probe, then history)."""
    labels: tuple[str, ...] = ()
    """Names of the candidates, by index."""
    choice: Int8[Tensor, "b n"] | None = None
    """Index of the chosen candidate of every token; kept where maps are asked for."""
    shares: Tensor | None = None
    """Share of tokens that chose each candidate [p], still on the device; where `choice` is not kept."""

    def told_shares(self) -> list[float] | None:
        """Share of tokens that chose each candidate; None where none was chosen."""
        if self.choice is None:
            return None if self.shares is None else self.shares.tolist()
        counts = torch.bincount(self.choice.flatten().int(), minlength=len(self.labels))
        return (counts / self.choice.numel()).tolist()


@dataclass(slots=True)
class Trace:
    """The records of the current run, in order, and the token grid that maps are drawn on."""

    records: list[StepRecord] = field(default_factory=list)
    grid: tuple[int, int, int] | None = None
    state_bytes: dict[str, int] = field(default_factory=dict)
    """Most bytes of anchors, by branch."""
    kv_bytes: dict[str, int] = field(default_factory=dict)
    """Most bytes of keys and values kept for recomputed tokens, by branch."""

    def note_bytes(self, branch: str, *, anchors: int, kv: int) -> None:
        """Remember the most that a branch has kept."""
        for most, now in ((self.state_bytes, anchors), (self.kv_bytes, kv)):
            most[branch] = max(most.get(branch, 0), now)

    def clear(self) -> None:
        """Forget everything: a new run begins."""
        self.records.clear()
        self.state_bytes.clear()
        self.kv_bytes.clear()
        self.grid = None

    def steps(self, kind: StepKind) -> list[int]:
        """Indices of the steps of one kind, each once."""
        return sorted({r.step for r in self.records if r.kind is kind})

    def tap_seconds(self) -> float:
        """Seconds that TAP itself took: forecasts, and probes and history on full steps."""
        forecasts = sum(r.stack.seconds for r in self.records if r.kind is StepKind.FORECAST)
        return forecasts + sum(watch.seconds for r in self.records for watch in r.overhead)

    def shares(self, step: int) -> dict[str, float]:
        """Share of tokens per predictor on one step, over all branches, in the candidates' order."""
        told = [(r.labels, found) for r in self.records if r.step == step and (found := r.told_shares()) is not None]
        total: dict[str, float] = {}
        for labels, shares in told:
            for label, share in zip(labels, shares, strict=True):
                total[label] = total.get(label, 0.0) + share / len(told)
        return total


@contextmanager
def timed(device: torch.device) -> Iterator[Stopwatch]:
    """A stopwatch around a block of code."""
    watch = Stopwatch(device)
    watch.start()
    yield watch
    watch.stop()
