"""cache-dit's DBCache, plain and with its calibrators, through its public API."""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tapvideo.compare.methods import Bench, Knob, Method, NotPossible, Settings, Variant
from tapvideo.config import GenerateConfig
from tapvideo.models.watch import blocks_of

_CALIBRATORS = {
    "dbcache": ("DBCache", None, {}),
    "dbcache-taylorseer": ("DBCache + TaylorSeer", "TaylorSeerCalibratorConfig", {"taylorseer_order": 1}),
    "dbcache-foca": ("DBCache + FoCa", "FoCaCalibratorConfig", {}),
    "dbcache-dmd": ("DBCache + DMD", "DMDCalibratorConfig", {}),
}


def cache_dit_methods() -> list[Method]:
    """DBCache alone, then with each calibrator."""
    try:
        release = version("cache-dit")
    except PackageNotFoundError:
        release = "not installed"
    return [
        Method(f"cache-dit-{key}", f"{label} (cache-dit {release})", _variants, _applied(calibrator, settings))
        for key, (label, calibrator, settings) in _CALIBRATORS.items()
    ]


def _variants(bench: Bench, target: float) -> list[Variant]:
    """Its first block always runs; how many more, and how long it warms up, is for the tuning prompts to say.

    By default it runs 8 blocks on every step, which is every block of a small model.
    """
    layers = len(blocks_of(bench.pipe.transformer))
    if layers < 2:
        raise NotPossible("it needs a model of two blocks or more")
    knob = Knob("residual_diff_threshold", low=3e-3, high=5.0)
    warmups = sorted({min(8, round(0.4 * target)), max(1, round(0.2 * target))}, reverse=True)
    return [Variant({"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "max_warmup_steps": w}, knob) for w in warmups]


def _applied(calibrator: str | None, calibrator_settings: Settings) -> Any:
    @contextmanager
    def apply(bench: Bench, settings: Settings) -> Generator[GenerateConfig]:
        cache_dit = _import()
        extra = {"calibrator_config": getattr(cache_dit, calibrator)(**calibrator_settings)} if calibrator else {}
        config = cache_dit.DBCacheConfig(num_inference_steps=bench.config.steps, **settings)
        with _quiet():
            cache_dit.enable_cache(bench.pipe, cache_config=config, **extra)
        try:
            yield bench.config
        finally:
            with _quiet():
                cache_dit.disable_cache(bench.pipe)

    return apply


def _import() -> Any:
    try:
        return import_module("cache_dit")
    except ImportError as error:
        raise NotPossible(f"cache-dit cannot be imported ({error}); pip install 'tapvideo[peers]' brings it") from error


@contextmanager
def _quiet() -> Generator[None]:
    """It reports on every switch; a comparison switches it hundreds of times."""
    handlers = logging.getLogger("CACHE_DIT").handlers  # which all of its loggers share
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)
