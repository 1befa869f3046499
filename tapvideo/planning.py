"""From a method's configuration to the kinds of all steps of a run, and to the calibration that it needs."""

from pathlib import Path

from tapvideo.calibration import Calibration, load_calibration
from tapvideo.config import ConfigError, TapConfig
from tapvideo.schedule import Plan, explicit_plan, full_plan, interval_plan, spread_plan


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
            f"plan; allowed: {allowed[0]} to {allowed[-1]} full steps of {num_steps}, or schedule=spread"
        )
    return found.best_steps(count)


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
