"""Methods that need no other package: fewer plain steps, and TAP's presets."""

import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from tapvideo.calibration import load_calibration
from tapvideo.calibration.find import find_calibration
from tapvideo.compare.methods import Bench, Knob, Method, NotPossible, Settings, Variant
from tapvideo.compare.store import file_sha256
from tapvideo.config import ForecastConfig, GenerateConfig, ScheduleConfig
from tapvideo.enable import enable_tap
from tapvideo.planning import make_plan
from tapvideo.resolve import run_kind
from tapvideo.schedule import StepKind
from tapvideo.schedulers import NodeUniPC, make_scheduler
from tapvideo.tap_config import BY_SPEEDUP

_NOT_SETTINGS = ("name", "enabled", "maps", "calibration")  # of a forecast: they shape no clip


@contextmanager
def plain(bench: Bench, settings: Settings) -> Generator[GenerateConfig]:
    """No acceleration; `steps` and `scheduler` may be others than the reference's."""
    config = replace(bench.config, **settings)
    before = bench.pipe.scheduler
    bench.pipe.scheduler = make_scheduler(config)
    try:
        yield config
    finally:
        bench.pipe.scheduler = before


def fewer_steps(scheduler: str, label: str) -> Method:
    """A plain run that takes as many steps as a budget has full passes."""

    def variants(bench: Bench, target: float) -> list[Variant]:
        known = bench.config.kind.schedulers
        if scheduler not in known:
            raise NotPossible(f"a {bench.config.model.pipeline} takes {', '.join(known)}")
        knob = Knob("steps", values=tuple(range(1, bench.config.steps + 1)), rising=True)
        return [Variant({"scheduler": scheduler}, knob, lambda settings: settings["steps"])]

    return Method(f"steps-{scheduler}", label, variants, plain)


def preset(forecast: ForecastConfig, schedule: str = "interval") -> Method:
    """TAP with one of its forecasts, on a schedule."""
    told = {key: value for key, value in asdict(forecast).items() if key not in _NOT_SETTINGS}
    shape = {key: value for key, value in told.items() if value or key not in ("blend", "guard")}  # if they are used

    def variants(bench: Bench, target: float) -> list[Variant]:
        # What recomputed tokens cost is seen in a run only.
        predict = None if forecast.recompute.budget else partial(_planned_passes, bench, forecast)
        known = shape
        if forecast.uses_calibrated_weights or forecast.guard or schedule == "calibrated":
            known = {**shape, "calibration": file_sha256(calibration_of(bench))[:16]}
        if schedule in BY_SPEEDUP:
            knob = Knob("full_steps", values=tuple(counts(bench, schedule)), rising=True)
            return [Variant({**known, "schedule": schedule}, knob, predict)]
        knob = Knob("warmup", values=tuple(range(1, bench.config.steps)), rising=True)
        return [
            Variant({**known, "interval": interval, "last": 1}, knob, predict)
            for interval in intervals(bench.config.steps, target, forecast.recompute.budget)
        ]

    @contextmanager
    def apply(bench: Bench, settings: Settings) -> Generator[GenerateConfig]:
        config = configured(bench, forecast, settings)
        tap = enable_tap(bench.pipe, config.tap_config)
        try:
            yield config
        finally:
            tap.disable()

    return Method(f"tap-{forecast.name}", f"TAP, {forecast.name}", variants, apply)


def on_nodes() -> Method:
    """A plain run of the model's own solver whose steps are the full steps of a calibrated schedule: no forecasts."""

    def variants(bench: Bench, target: float) -> list[Variant]:
        _nodes_of(bench)
        known = {"calibration": file_sha256(calibration_of(bench))[:16]}
        knob = Knob("full_steps", values=tuple(counts(bench, "calibrated")), rising=True)
        return [Variant(known, knob, lambda settings: settings["full_steps"])]

    @contextmanager
    def apply(bench: Bench, settings: Settings) -> Generator[GenerateConfig]:
        steps = load_calibration(calibration_of(bench)).best_steps(settings["full_steps"])
        before = bench.pipe.scheduler
        bench.pipe.scheduler = _nodes_of(bench).at(make_scheduler(bench.config), bench.config.steps, steps)
        try:
            yield replace(bench.config, steps=len(steps))
        finally:
            bench.pipe.scheduler = before

    return Method("steps-nodes", "UniPC on the calibrated nodes", variants, apply)


def _nodes_of(bench: Bench) -> type[NodeUniPC]:
    if bench.config.scheduler != "unipc" or bench.config.kind.sigmas != "scheduler":
        raise NotPossible("nodes are chosen among UniPC's steps, and this model runs another solver")
    return NodeUniPC


def intervals(steps: int, target: float, recomputed: float = 0.0) -> list[int]:
    """Distances between full steps that can meet a target: from few warm-up steps to many.

    Args:
        steps: of a run.
        target: full passes to meet.
        recomputed: share of the tokens that runs through the blocks on every other step.
    """
    full = max((target - recomputed * steps) / (1 - recomputed), 1.0)
    first = max(2, math.ceil(steps / full - 1e-9))
    return [first, first + 1, first + 2]


def configured(bench: Bench, forecast: ForecastConfig, settings: Settings) -> GenerateConfig:
    """A forecast on the schedule that settings name."""
    if "schedule" in settings:
        schedule = ScheduleConfig(kind=settings["schedule"], speedup=bench.config.steps / settings["full_steps"])
    else:
        schedule = ScheduleConfig(interval=settings["interval"], warmup=settings["warmup"], last=settings["last"])
    config = replace(bench.config, tap=replace(forecast, maps=False), schedule=schedule)
    if config.tap_config.awaits_calibration:
        config = replace(config, tap=replace(config.tap, calibration=str(calibration_of(bench))))
    return config


def calibration_of(bench: Bench) -> Path:
    """The file.

    Raises:
        NotPossible: if there is none for such runs.
    """
    kind = run_kind(bench.config)
    found = find_calibration(kind)
    if found is None:
        raise NotPossible(f"there is no calibration for {kind}; tapvideo-calibrate makes one")
    return found


def counts(bench: Bench, schedule: str) -> list[int]:
    """Numbers of full steps that a schedule can have."""
    return (
        list(range(2, bench.config.steps))
        if schedule == "spread"
        else load_calibration(calibration_of(bench)).full_steps
    )


def _planned_passes(bench: Bench, forecast: ForecastConfig, settings: Settings) -> float:
    plan = make_plan(configured(bench, forecast, settings).tap_config, bench.config.steps)
    full = plan.count(StepKind.FULL)
    cost = bench.forecast_cost if forecast.probe == "modulated" else bench.skip_cost
    return full + (len(plan) - full) * cost
