"""FULL or FORECAST, for every step of a run, known before the run starts."""

from collections.abc import Callable
from enum import StrEnum
from itertools import accumulate, pairwise


class StepKind(StrEnum):
    """What a denoising step does: run the stack, or forecast its output."""

    FULL = "full"
    FORECAST = "forecast"


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


def power_plan(num_steps: int, *, count: int, power: float = 2.3) -> Plan:
    """`count` full steps at a power of an even spread: closest at the start, where trajectories bend.

    Args:
        num_steps: of the run.
        count: of them that are full.
        power: 1 is even; the more, the more they crowd at the start.

    Raises:
        ValueError: if there are more full steps than steps, or none.
    """
    if not 1 <= count <= num_steps:
        raise ValueError(f"schedule.speedup asks for {count} full steps of {num_steps}; allowed: 1 to {num_steps}")
    steps: list[int] = []
    for index in range(count):
        wanted = round(num_steps * (index / count) ** power)
        steps.append(max(wanted, steps[-1] + 1) if steps else 0)
    return explicit_plan(num_steps, steps=steps)


def spread_plan(num_steps: int, *, count: int) -> Plan:
    """`count` full steps: a head without a gap, then gaps that grow evenly, up to the last step but one.

    The head has the share of the full steps that full steps have of the run. On clips of wan_tiny, with UniPC and with
    Euler, runs end nearer to the un-accelerated ones than on `power_plan` with a third of the steps full and more;
    with a fifth, by either.

    Raises:
        ValueError: if there are more full steps than steps, or none.
    """
    if not 1 <= count <= num_steps:
        raise ValueError(f"schedule.speedup asks for {count} full steps of {num_steps}; allowed: 1 to {num_steps}")
    end = num_steps - 2
    if count == 1 or count > end:
        return explicit_plan(num_steps, steps=list(range(count)))
    head = min(max(2, round(count * count / num_steps)), count - 1)
    rest = count - head
    growth = (end - count + 1) / (rest * (rest + 1) / 2)  # so that gaps 1 + growth, 1 + 2 growth, .. reach the end
    steps = [round(head - 1 + j + growth * j * (j + 1) / 2) for j in range(rest + 1)]
    gaps = sorted(after - before for before, after in pairwise(steps))  # rounding must not make one shorter again
    return explicit_plan(num_steps, steps=[*range(head), *accumulate(gaps, initial=head - 1)])


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
