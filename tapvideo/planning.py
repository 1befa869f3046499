"""From a method's configuration to the kinds of all steps of a run, and to the calibration that it needs."""

import logging
from pathlib import Path

from tapvideo.calibration import Calibration, load_calibration
from tapvideo.config import ConfigError, ScheduleConfig, TapConfig
from tapvideo.schedule import Plan, StepKind, explicit_plan, full_plan, interval_plan, spread_plan

logger = logging.getLogger(__name__)


def make_plan(config: TapConfig, num_steps: int) -> Plan:
    """The kinds of all steps of a run under `config`; runs shorter than `schedule.min_steps` are all full.

    Raises:
        ValueError: if the schedule names steps outside the run, or the calibration is not for runs like this one.
    """
    schedule = config.schedule
    if not config.enabled or num_steps < schedule.min_steps:
        return full_plan(num_steps)
    if schedule.kind == "explicit":
        return explicit_plan(num_steps, steps=schedule.steps)
    if schedule.kind == "spread":
        return spread_plan(num_steps, count=schedule.count(num_steps))
    if schedule.kind == "calibrated":
        return explicit_plan(num_steps, steps=_calibrated_steps(config, num_steps))
    assert schedule.interval is not None
    return interval_plan(num_steps, interval=schedule.interval, warmup=schedule.warmup, last=schedule.last)


def spread_over_experts(schedule: ScheduleConfig, num_steps: int, start: int) -> ScheduleConfig:
    """A spread as explicit steps, so that a second expert's warm-up is among those that `speedup` allows.

    Args:
        schedule: of kind `spread`; any other is given back, as for a run that one expert makes.
        num_steps: of the run.
        start: the second expert's first step.
    """
    if schedule.kind != "spread" or num_steps < schedule.min_steps or not 0 < start < num_steps:
        return schedule
    most, steps = schedule.count(num_steps), []
    for count in range(most, 0, -1):
        plan = spread_plan(num_steps, count=count)
        warm = range(start, start + schedule.warmup)
        steps = [step for step, kind in enumerate(plan) if kind is StepKind.FULL or step in warm]
        if len(steps) <= most:
            _halve_gaps(steps, most, num_steps)
            break
    else:
        message = "tapvideo: schedule.speedup=%g allows %d full steps of %d, and two experts warm up on %d"
        logger.warning(message, schedule.speedup, most, num_steps, len(steps))
    return ScheduleConfig(kind="explicit", steps=steps, warmup=schedule.warmup, min_steps=schedule.min_steps)


def _halve_gaps(steps: list[int], count: int, num_steps: int) -> None:
    """The widest first, until there are so many steps."""
    while len(steps) < count:
        ends = [*steps[1:], num_steps]
        index = max(range(len(steps)), key=lambda i: ends[i] - steps[i])
        steps.insert(index + 1, (steps[index] + ends[index]) // 2)


def read_calibration(config: TapConfig) -> Calibration | None:
    """The calibration that a config names, if it needs one.

    Raises:
        ConfigError: if the file is not there or no calibration, or `auto` was left for the stack to find.
    """
    if not config.needs_calibration:
        return None
    if config.awaits_calibration:
        raise ConfigError(
            "tap.calibration='auto' is looked up before TAP is enabled (tapvideo.default_config, or the command line); "
            "allowed here: a file that tapvideo-calibrate wrote"
        )
    return load_calibration(Path(config.calibration).expanduser())


def _calibrated_steps(config: TapConfig, num_steps: int) -> list[int]:
    found = read_calibration(config)
    assert found is not None
    check_steps(config, found, num_steps)
    count = config.schedule.count(num_steps)
    allowed = found.full_steps
    if count not in allowed:
        raise ConfigError(
            f"schedule.speedup={config.schedule.speedup!r} is {count} full steps, for which the calibration has no "
            f"plan; allowed: {num_steps / allowed[-1]:g} to {num_steps / allowed[0]:g}, or schedule=spread"
        )
    return found.best_steps(count)


def check_starts(config: TapConfig, calibration: Calibration | None, first_step: int) -> None:
    """Refuse a calibration of two experts in a run in which one of them took over at another step.

    Raises:
        ConfigError: if it is one.
    """
    starts = (0,) if calibration is None else calibration.starts
    if len(starts) > 1 and first_step not in starts:
        raise ConfigError(
            f"tap.calibration={config.calibration!r} is for experts that begin at steps {list(starts)}, and one of "
            f"this run's began at step {first_step}; allowed: a calibration of such runs"
        )


def check_steps(config: TapConfig, calibration: Calibration, num_steps: int) -> None:
    """Refuse a calibration of runs of other lengths.

    Raises:
        ConfigError: if it is one.
    """
    if calibration.num_steps != num_steps:
        raise ConfigError(
            f"tap.calibration={config.calibration!r} is for runs of {calibration.num_steps} steps, and this one has "
            f"{num_steps}; allowed: steps={calibration.num_steps}, or a calibration of its own"
        )
