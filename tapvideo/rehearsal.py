"""Runs with forecasts, on clips whose un-accelerated end is known: what an error does, and which plan comes nearest."""

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from tapvideo.calibration.file import Calibration
from tapvideo.calibration.find import SUFFIX
from tapvideo.calibration.nodes import ANCHORS, run_plans
from tapvideo.calibration.weights import errors, fit
from tapvideo.config import ForecastConfig, GenerateConfig, ScheduleConfig
from tapvideo.console import Console
from tapvideo.moves import Steps, Tried, improve
from tapvideo.pipeline import Pipeline, accelerated
from tapvideo.resolve import DEFAULT_BLEND
from tapvideo.sample import Sample, sample
from tapvideo.schedule import StepKind, power_plan, spread_plan

JUDGES = 3
"""Of so many clips, one is not looked at while schedules are searched by moves."""

_TINY = 1e-12
_POWERS = (1.0, 0.7, 1.4, 2.0)  # of the sensitivity
_CROWDING = (2.3, 1.9)  # powers of further plans that need no calibration


@dataclass(frozen=True, slots=True)
class Known:
    """A calibration clip."""

    clip: tuple[str, int]
    """Prompt and seed."""
    gram: Float64[Tensor, "m m"]
    final: Float[Tensor, " b *latent"]
    """Latents where the un-accelerated run ended."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A clip on which schedules are rehearsed."""

    clip: tuple[str, int]
    """Prompt and seed."""
    frames: Float[Tensor, "frames height width 3"]
    """Of the un-accelerated run."""


def measure_sensitivity(
    pipe: Pipeline,
    config: GenerateConfig,
    calibration: Calibration,
    clips: list[Known],
    probes: int,
    console: Console,
) -> Float64[Tensor, " s"]:
    """Final distance over error of the guided residual, for an error at each step: geometric mean over clips.

    Measured at `probes` steps, by a forecast there in a run that is full otherwise; between them, interpolated.
    """
    probed, logs = _probed(calibration, probes), []
    for step in probed:
        wrong = _error_at(calibration, step)
        others = [s for s in range(config.steps) if s != step]
        moved = _distances(pipe, config, calibration, clips, others)
        sizes = [math.sqrt(max((wrong @ known.gram @ wrong).item(), _TINY)) for known in clips]
        logs.append(_log_mean(far / size for far, size in zip(moved, sizes, strict=True)))
        console.say(f"step {step}: an error moves the final latents by {math.exp(logs[-1]):.3g} of its size")
    return _between(probed, logs, config.steps)


def _probed(calibration: Calibration, count: int) -> list[int]:
    """So many steps, the more the earlier; none on which a transformer has no anchor yet."""
    plan = power_plan(calibration.num_steps, count=count + 1)
    steps = [step for step, kind in enumerate(plan) if kind is StepKind.FULL][1:]
    return sorted({step + (step in calibration.starts) for step in steps})


def _error_at(calibration: Calibration, step: int) -> Float64[Tensor, " m"]:
    """Coefficients of the guided error of one forecast, from the steps right before it."""
    number = calibration.expert(step)
    first, mix = calibration.starts[number], calibration.mix[number]
    anchors = torch.tensor([[s for s in range(step - 1, step - 1 - ANCHORS, -1) if s >= first]])
    target = torch.tensor([step])
    weights = fit(calibration.gram, mix, anchors, target)
    return errors(weights, mix, anchors, target, calibration.num_steps)[0]


def rehearse(
    pipe: Pipeline,
    config: GenerateConfig,
    calibration: Calibration,
    clips: list[Shown],
    speedups: Sequence[float],
    console: Console,
    *,
    moves: int = 0,
) -> Calibration:
    """The calibration with the plans whose frames came nearest on clips, where some were tried.

    What the search counts with is linear, and of calibrated weights alone; runs are not, and `tap=default` blends. So a
    few plans are tried with what it does: those found when sensitivity counts for less or for more than measured, and
    some that need no calibration. Of each number of full steps `moves` more follow from the best by moving single ones;
    what these find is kept if it is nearer on clips that they did not see, too.
    """
    plans = calibration.plans.clone()

    def score(steps: Steps, clip: int) -> float:
        (error,) = _frame_errors(pipe, config, calibration, [clips[clip]], list(steps))
        return math.log(max(error, _TINY))

    def say(found: Tried, how: str = "") -> None:
        console.say(f"{len(found.steps)} full steps at {list(found.steps)}{how}: PSNR {_decibels(found.mean):.2f} dB")

    for count in rehearsed_counts(config.steps, calibration, speedups) if clips else []:
        tried: list[Tried] = []
        for steps in candidates(calibration, count):
            off = _frame_errors(pipe, config, calibration, clips, list(steps))
            tried.append(Tried(steps, tuple(math.log(max(value, _TINY)) for value in off)))
            say(tried[-1])
        best = min(tried, key=lambda found: found.mean)
        if moves:
            known = [found.steps for found in tried]
            best = _moved(score, best, calibration, moves=moves, known=known, say=say)
        plans[count] = False
        plans[count, list(best.steps)] = True
    return replace(calibration, plans=plans)


def _moved(
    score: Callable[[Steps, int], float],
    first: Tried,
    calibration: Calibration,
    *,
    moves: int,
    known: Sequence[Steps],
    say: Callable[[Tried, str], None],
) -> Tried:
    """Where moves lead; the first schedule where that is no nearer on a third of the clips, which they do not see.

    Of some dozens of schedules, the best one on a few dozen clips owes much to these very clips.
    """
    judges = range(JUDGES - 1, len(first.scores), JUDGES)
    seen = [clip for clip in range(len(first.scores)) if clip not in judges]
    found = improve(
        lambda steps, clip: score(steps, seen[clip]),
        _on(first, seen),
        moves=moves,
        num_steps=calibration.num_steps,
        fixed=calibration.starts,
        known=known,
        on_gain=lambda number, found: say(found, f" (move {number} of {moves})"),
    )
    if found.steps == first.steps:
        return first
    before, after = _on(first, judges), Tried(found.steps, tuple(score(found.steps, clip) for clip in judges))
    kept = after if after.mean < before.mean else before
    say(before, f" ({len(judges)} clips that no move saw)")
    say(after, f" ({len(judges)} clips that no move saw): {'kept' if kept is after else 'not kept'}")
    return kept


def _on(tried: Tried, clips: Sequence[int]) -> Tried:
    """On some of the clips."""
    return Tried(tried.steps, tuple(tried.scores[clip] for clip in clips))


def rehearsed_counts(steps: int, calibration: Calibration, speedups: Sequence[float]) -> list[int]:
    """Numbers of full steps that speedups ask for and that the calibration has plans for."""
    return sorted({round(steps / speedup) for speedup in speedups} & set(calibration.full_steps))


def candidates(calibration: Calibration, count: int) -> list[tuple[int, ...]]:
    """Plans worth trying, each once: the one that there is comes first."""
    found: dict[tuple[int, ...], None] = {tuple(calibration.best_steps(count)): None}
    for power in _POWERS:
        swayed = calibration.sensitivity**power
        plans = run_plans(calibration.gram, calibration.mix, swayed, calibration.starts)
        steps = plans[count].nonzero()[:, 0].tolist()
        if steps:
            found[tuple(steps)] = None
    steps = calibration.num_steps
    for plan in (
        spread_plan(steps, count=count),
        *(power_plan(steps, count=count, power=power) for power in _CROWDING),
    ):
        full = [step for step, kind in enumerate(plan) if kind is StepKind.FULL]
        found[_through(full, calibration.starts)] = None
    return list(found)


def _through(steps: list[int], starts: Sequence[int]) -> tuple[int, ...]:
    """As many full steps, among them the first of every transformer: each takes the place of the one nearest to it."""
    found = set(steps)
    for start in starts:
        if start not in found:
            found.remove(min(found - set(starts), key=lambda step: abs(step - start)))
            found.add(start)
    return tuple(sorted(found))


def _distances(
    pipe: Pipeline, config: GenerateConfig, calibration: Calibration, clips: list[Known], full: list[int]
) -> list[float]:
    """Relative L2 of final latents of runs with these full steps and calibrated weights alone, by clip."""
    found = []
    for known, made in zip(clips, _runs(pipe, config, calibration, clips, full, decode=False), strict=True):
        moved = torch.linalg.vector_norm(made.latents.cpu().double() - known.final.double())
        found.append((moved / torch.linalg.vector_norm(known.final.double())).item())
    return found


def _frame_errors(
    pipe: Pipeline, config: GenerateConfig, calibration: Calibration, clips: list[Shown], full: list[int]
) -> list[float]:
    """Root mean square by which frames of runs of `tap=default` with these full steps are off, by clip.

    Not of latents: late errors move them much and frames little, so schedules are ranked otherwise.
    """
    runs = _runs(pipe, config, calibration, clips, full, blend=DEFAULT_BLEND)
    return [(made.frames - shown.frames).square().mean().sqrt().item() for shown, made in zip(clips, runs, strict=True)]


def _runs(
    pipe: Pipeline,
    config: GenerateConfig,
    calibration: Calibration,
    clips: Sequence[Known | Shown],
    full: list[int],
    *,
    blend: float = 1.0,
    decode: bool = True,
) -> Iterator[Sample]:
    """Clips made with these full steps; `blend` 1 is calibrated weights alone."""
    schedule = ScheduleConfig(kind="explicit", steps=full, warmup=1, min_steps=0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"first{SUFFIX}"
        calibration.save(path)
        how: dict[str, Any] = {"family": "calibrated"} if blend == 1 else {"blend": blend, "guard": True}
        forecast = ForecastConfig(calibration=str(path), maps=False, **how)
        with accelerated(pipe, replace(config, tap=forecast, schedule=schedule)):
            for known in clips:
                yield sample(pipe, config, *known.clip, lambda _: None, decode=decode)


def _decibels(log_error: float) -> float:
    """PSNR of frames in [0, 1] whose root mean square error has this logarithm."""
    return -20 * log_error / math.log(10)


def _log_mean(values: Iterable[float]) -> float:
    logs = [math.log(max(value, _TINY)) for value in values]
    return sum(logs) / len(logs)


def _between(steps: list[int], values: list[float], num_steps: int) -> Float64[Tensor, " s"]:
    """Exponentials of what lies between values that are known at some steps; beyond the ends, of the nearest."""
    found = []
    for step in range(num_steps):
        after = next((i for i, known in enumerate(steps) if known >= step), len(steps))
        if after in (0, len(steps)):
            found.append(values[min(after, len(steps) - 1)])
            continue
        low, high = steps[after - 1], steps[after]
        share = (step - low) / (high - low)
        found.append((1 - share) * values[after - 1] + share * values[after])
    return torch.tensor(found, dtype=torch.float64).exp()
