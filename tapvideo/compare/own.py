"""Methods that need no other package: fewer plain steps, and TAP's presets."""

import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial

from tapvideo.compare.methods import Bench, Knob, Method, NotPossible, Settings, Variant
from tapvideo.config import ForecastConfig, GenerateConfig, ScheduleConfig
from tapvideo.enable import enable_tap
from tapvideo.schedule import StepKind
from tapvideo.schedulers import make_scheduler
from tapvideo.stack import make_plan

_NOT_SETTINGS = ("name", "enabled", "maps")  # of a forecast: they shape no clip


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


def preset(forecast: ForecastConfig) -> Method:
    """TAP with one of its forecasts, on an interval schedule."""
    shape = {key: value for key, value in asdict(forecast).items() if key not in _NOT_SETTINGS}

    def variants(bench: Bench, target: float) -> list[Variant]:
        knob = Knob("warmup", values=tuple(range(1, bench.config.steps)), rising=True)
        # What recomputed tokens cost is seen in a run only.
        predict = None if forecast.recompute.budget else partial(_planned_passes, bench, forecast)
        return [
            Variant({**shape, "interval": interval, "last": 1}, knob, predict)
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
    """A forecast on the interval schedule that settings name."""
    schedule = ScheduleConfig(interval=settings["interval"], warmup=settings["warmup"], last=settings["last"])
    return replace(bench.config, tap=replace(forecast, maps=False), schedule=schedule)


def _planned_passes(bench: Bench, forecast: ForecastConfig, settings: Settings) -> float:
    plan = make_plan(configured(bench, forecast, settings).tap_config, bench.config.steps)
    full = plan.count(StepKind.FULL)
    return full + (len(plan) - full) * bench.skip_cost
