"""What a report shows, as plain data; `steps_and_maps` takes it from a run's trace."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Int8
from torch import Tensor

from tapvideo.schedule import StepKind
from tapvideo.trace import StepRecord, Trace

_NOISE = 1.1
"""As much may seconds of two equal runs differ."""


@dataclass(frozen=True, slots=True)
class Step:
    """One denoising step of one clip, all guidance branches together."""

    index: int
    kind: StepKind
    sigma: float | None
    seconds: float
    """In the block stack: blocks and TAP's own work, without embedding, head and scheduler."""
    shares: dict[str, float]
    """Share of tokens per predictor; empty on full steps."""


@dataclass(frozen=True, slots=True)
class ChoiceMap:
    """The predictor that every token of one branch chose on one forecast step."""

    step: int
    branch: str
    labels: tuple[str, ...]
    choice: Int8[Tensor, "t h w"]


@dataclass(frozen=True, slots=True)
class Clip:
    """One video and what is known of it; None and empty lists mean not measured."""

    prompt: str
    seed: int
    video: Path
    baseline: Path | None
    """The same prompt and seed without acceleration."""
    psnr: float | None
    ssim: float | None
    denoise_seconds: float
    baseline_denoise_seconds: float | None
    steps: list[Step]
    maps: list[ChoiceMap]


@dataclass(frozen=True, slots=True)
class Report:
    """One page."""

    title: str
    command: str
    """The command line that makes this page again."""
    facts: dict[str, str]
    """Configuration, versions, device, seconds by stage; a value of several lines is shown as a block."""
    clips: list[Clip]


def doubt(speedup: float, steps: int, full: int) -> str:
    """What to say of a speedup beyond what steps that were left out explain; empty where there is nothing to say."""
    if not full or speedup <= _NOISE * steps / full:
        return ""
    if full == steps:
        return "nothing was forecast: something else may have slowed the un-accelerated run"
    return f"more than {steps} / {full} steps explain: something else may have slowed the un-accelerated run"


def steps_and_maps(trace: Trace, row: int = 0) -> tuple[list[Step], list[ChoiceMap]]:
    """The steps of a traced run, and the choice maps of one row of its batch.

    Shares are those of the whole batch, as the trace counts them.

    Raises:
        ValueError: if the batch has no such row, or the choices do not fill the token grid.
    """
    by_step: dict[int, list[StepRecord]] = {}
    for record in trace.records:
        by_step.setdefault(record.step, []).append(record)
    steps = [_step(trace, index, by_step[index]) for index in sorted(by_step)]
    return steps, [_choice_map(record, trace.grid, row) for record in trace.records if _has_map(record, trace.grid)]


def _step(trace: Trace, index: int, records: Sequence[StepRecord]) -> Step:
    # Branches can differ where one of them still warms up: a step on which any ran the stack is a full one.
    kind = StepKind.FULL if any(r.kind is StepKind.FULL for r in records) else StepKind.FORECAST
    seconds = sum(r.stack.seconds for r in records)  # TAP's own work on full steps is inside
    return Step(index, kind, records[0].sigma, seconds, trace.shares(index))


def _has_map(record: StepRecord, grid: tuple[int, int, int] | None) -> bool:
    return grid is not None and record.choice is not None


def _choice_map(record: StepRecord, grid: tuple[int, int, int] | None, row: int) -> ChoiceMap:
    assert grid is not None
    assert record.choice is not None
    batch, tokens = record.choice.shape
    if not 0 <= row < batch:
        raise ValueError(f"row={row} is not in a batch of {batch}; allowed: 0 to {batch - 1}")
    if tokens != grid[0] * grid[1] * grid[2]:
        raise ValueError(f"{tokens} choices on step {record.step} do not fill the token grid {grid}")
    return ChoiceMap(record.step, record.branch, record.labels, record.choice[row].reshape(grid).cpu())
