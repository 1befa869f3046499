"""From `tap.calibration=auto` to a file, or to the method that needs none: before anything is planned or named."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from tapvideo.calibration import Calibration, load_calibration
from tapvideo.calibration.find import RunKind, find_calibration
from tapvideo.config import ConfigError, ForecastConfig, GenerateConfig, ScheduleConfig, TapConfig
from tapvideo.lora import lora_digests
from tapvideo.planning import check_steps, make_plan, spread_over_experts
from tapvideo.schedulers import expert_starts, make_scheduler, second_start
from tapvideo.weights import ASSETS

logger = logging.getLogger(__name__)

DEFAULT_BLEND = 0.5
"""Share of calibrated weights in `tap=default`: of wan_tiny's runs, these were nearer than either alone."""

Config = TypeVar("Config", bound=GenerateConfig)


def run_kind(config: GenerateConfig, scheduler: Any = None) -> RunKind:
    """What a calibration must agree in with this run.

    Args:
        config: of the run.
        scheduler: the one that it will run, where that is at hand.

    Raises:
        ConfigError: if the scheduler follows from weights that are not at hand, a LoRA is not, or a scale is no number.
    """
    key = config.kind.guidance
    cfg = 1.0 if key == "guidance" else float(config.model.call.get(key, 1.0))
    kind = _kind(scheduler or make_scheduler(config), config.model.weights, config.steps, config.guidance)
    loras = [digest for digest in lora_digests(config).values() if digest]
    lora = f"{'+'.join(loras)} x {config.lora_scale:g}" if loras else None
    edge, second = config.model.boundary, config.model.call.get("guidance_scale_2")
    if edge is not None:
        if second is not None and (isinstance(second, bool) or not isinstance(second, int | float)):
            raise ConfigError(f"model.call.guidance_scale_2={second!r} is no number; allowed: a number, or null")
        kind = replace(kind, boundary=float(edge), guidance_2=_other(second, config.guidance))
    return replace(kind, true_cfg=cfg if cfg > 1 else None, lora=lora)


def resolve(config: Config) -> Config:
    """The config with the calibration that fits it, or with the method that needs none where there is no such file.

    Two experts' spread is resolved to steps, too: which they are depends on where the second one takes over.

    Raises:
        ConfigError: if `tap.calibration` names a file that is none, or is for other steps or experts; or if the noise
            levels of two experts' steps follow from weights that are not at hand.
    """
    config = _with_calibration(config)
    if config.model.boundary is None or not config.tap.enabled:
        return config
    return replace(config, schedule=spread_over_experts(config.schedule, config.steps, expert_starts(config)[-1]))


def _with_calibration(config: Config) -> Config:
    tap = config.tap_config
    if not tap.needs_calibration:
        return config
    if not tap.awaits_calibration:
        return _with_file(config, Path(tap.calibration).expanduser().resolve())
    if config.steps < config.schedule.min_steps:  # nothing is forecast
        return _without(config, "")
    scheduler = _known_scheduler(config)
    if scheduler is None:
        return _without(config, "the weights are not here, whose scheduler says which one fits")
    kind = run_kind(config, scheduler)
    found = find_calibration(kind)
    if found is None:
        return _without(config, f"there is none for {kind}; tapvideo-calibrate makes one")
    starts, known = expert_starts(config), list(load_calibration(found).starts)
    if known != starts:
        return _without(config, f"{found} is for transformers that begin at steps {known}, and these begin at {starts}")
    return replace(config, tap=replace(config.tap, calibration=str(found)))


def _known_scheduler(config: GenerateConfig) -> Any:
    """The scheduler of a run; None in a dry run without the weights that it follows from.

    Raises:
        ConfigError: without them in any other run.
    """
    try:
        return make_scheduler(config)
    except ConfigError:
        if not config.dry_run:
            raise
        return None


def _with_file(config: Config, path: Path) -> Config:
    """The same run by a calibration that was named: another model's may be worth a try, but not without a word."""
    calibration, scheduler = load_calibration(path), _known_scheduler(config)
    unlike = run_kind(config, scheduler).differences(calibration) if scheduler else []
    if unlike:
        logger.warning("tapvideo: tap.calibration=%r is of other runs: %s", str(path), "; ".join(unlike))
    if config.steps >= config.schedule.min_steps:  # or nothing is forecast
        check_steps(config.tap_config, calibration, config.steps)
        check_experts(config, calibration, f"tap.calibration={str(path)!r}")
    return replace(config, tap=replace(config.tap, calibration=str(path)))


def check_experts(config: GenerateConfig, calibration: Calibration, what: str) -> None:
    """Refuse a calibration of runs in which transformers begin at other steps.

    Args:
        config: of the run.
        calibration: which it would go by.
        what: key and value that name it.

    Raises:
        ConfigError: if it is one; or if where they begin follows from weights that are not at hand.
    """
    starts = expert_starts(config)
    if list(calibration.starts) != starts:
        raise ConfigError(
            f"{what} is for transformers that begin at steps {list(calibration.starts)}, and this run's begin at "
            f"{starts}; allowed: a calibration of such runs, or tap=paper schedule=spread"
        )


def default_config(
    pipe: Any,
    *,
    steps: int,
    guidance: float,
    speedup: float = 2.5,
    weights: str | None = None,
    guidance_2: float | None = None,
) -> TapConfig:
    """The method for `enable_tap` that measured best: calibrated where a calibration fits, else what needs none.

    Args:
        pipe: the pipeline, with the scheduler that it will run.
        steps: `num_inference_steps` of its calls.
        guidance: `guidance_scale` of its calls.
        speedup: steps over full steps, among them those on which a second expert warms up.
        weights: hub id or folder, as they were named to `tapvideo-calibrate`; by default, what the pipeline says.
        guidance_2: `guidance_scale_2` of its calls, for the second of two experts.

    Raises:
        ConfigError: if the speedup is none, or the calibration has no plan with so few full steps.
    """
    named = weights or str(getattr(pipe.config, "_name_or_path", ""))
    if Path(named).parent == ASSETS:
        named = f"builtin:{Path(named).name}"
    kind, starts = _kind(pipe.scheduler, named, steps, guidance), (0,)
    if getattr(pipe, "transformer_2", None) is not None:
        edge = getattr(pipe.config, "boundary_ratio", None)
        kind = replace(kind, boundary=edge, guidance_2=_other(guidance_2, guidance))
        starts = (0, 0 if edge is None else second_start(pipe.scheduler, edge, steps))
    found = find_calibration(kind)
    if found is None or load_calibration(found).starts != starts:
        logger.warning("tapvideo: forecasting without a calibration, because there is none for %s", kind)
        spread = ScheduleConfig(kind="spread", speedup=speedup)
        return TapConfig(name=_without_name("default"), schedule=spread_over_experts(spread, steps, starts[-1]))
    schedule = ScheduleConfig(kind="calibrated", speedup=speedup)
    made = TapConfig(name="default", blend=DEFAULT_BLEND, guard=True, calibration=str(found), schedule=schedule)
    make_plan(made, steps)  # a speedup that has no plan is refused now, and not in mid-run
    return made


def _other(second: float | None, first: float) -> float | None:
    """A second expert's guidance, where it is not that of the first."""
    return None if second is None or second == first else float(second)


def _without(config: Config, why: str) -> Config:
    """The same run by the method that needs no calibration, and a line that says why, if there is a reason to give."""
    tap, schedule = config.tap, config.schedule
    if tap.family == "calibrated":
        tap = replace(ForecastConfig(name=_without_name(tap.name)), maps=tap.maps, recompute=tap.recompute)
    elif tap.blend:
        tap = replace(tap, name=_without_name(tap.name), blend=0.0)
    tap = replace(tap, guard=False)
    if schedule.kind == "calibrated":
        schedule = replace(schedule, kind="spread")
    if why:
        logger.warning("tapvideo: forecasting without a calibration, because %s", why)
    return replace(config, tap=tap, schedule=schedule)


def _without_name(name: str) -> str:
    """What reports call a method that goes without its calibration."""
    return f"{name}-uncalibrated"


def _kind(scheduler: Any, weights: str, steps: int, guidance: float) -> RunKind:
    settings = scheduler.config
    shift = settings.get("flow_shift", settings.get("shift"))
    return RunKind(weights, type(scheduler).__name__, None if shift is None else float(shift), steps, guidance)
