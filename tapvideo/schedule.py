"""FULL or FORECAST, for every step of a run, known before the run starts."""

from collections.abc import Callable
from enum import StrEnum


class StepKind(StrEnum):
    """What a denoising step does: run the stack, or forecast its output."""

    FULL = "full"
    FORECAST = "forecast"


BEND = 2.3
"""Full steps lie at this power of an even spread: where calibrations of wan_tiny put them, at all budgets."""

Plan = tuple[StepKind, ...]
Schedule = Callable[[int], Plan]
"""Number of steps in, one kind per step out; no tensors, so that all ranks agree."""


def interval_plan(num_steps: int, *, interval: int, warmup: int, last: int) -> Plan:
    """The first `warmup` steps, every `interval`-th after them, and the `last` steps are full."""

    def kind(step: int) -> StepKind:
        on_beat = step >= warmup and (step - (warmup - 1)) % interval == 0
        full = step < warmup or on_beat or step >= num_steps - last
        return StepKind.FULL if full else StepKind.FORECAST

    return tuple(kind(step) for step in range(num_steps))


def spread_plan(num_steps: int, *, count: int, bend: float = BEND) -> Plan:
    """`count` full steps, closest at the start, where trajectories bend, and ever farther apart.

    Args:
        num_steps: of the run.
        count: of them that are full.
        bend: 1 for an even spread, more for steps that crowd at the start.

    Raises:
        ValueError: if there are more full steps than steps, or none.
    """
    if not 1 <= count <= num_steps:
        raise ValueError(f"schedule.speedup asks for {count} full steps of {num_steps}; allowed: 1 to {num_steps}")
    steps: list[int] = []
    for index in range(count):
        wanted = round(num_steps * (index / count) ** bend)
        steps.append(max(wanted, steps[-1] + 1) if steps else 0)
    return explicit_plan(num_steps, steps=steps)


def explicit_plan(num_steps: int, *, steps: list[int]) -> Plan:
    """The named steps are full, and step 0.

    Raises:
        ValueError: if a step lies outside the run.
    """
    outside = [s for s in steps if not 0 <= s < num_steps]
    if outside:
        raise ValueError(f"schedule.steps names {outside}, outside this run; allowed: 0 to {num_steps - 1}")
    full = {0, *steps}
    return tuple(StepKind.FULL if step in full else StepKind.FORECAST for step in range(num_steps))


def full_plan(num_steps: int) -> Plan:
    """Every step is full."""
    return (StepKind.FULL,) * num_steps


def strip(plan: Plan) -> str:
    """The plan in one line: `#` for a full step, `.` for a forecast step."""
    return "".join("#" if kind is StepKind.FULL else "." for kind in plan)
