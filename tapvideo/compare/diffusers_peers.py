"""The caches that come with diffusers, through their public configs."""

import ast
import io
from collections.abc import Callable, Generator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import diffusers
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
)

from tapvideo.compare.methods import Bench, Knob, Method, NotPossible, Settings, Variant
from tapvideo.compare.own import intervals
from tapvideo.config import GenerateConfig

_THRESHOLD = Knob("threshold", low=3e-3, high=5.0)
_EVERY_TIMESTEP = (-1, 1001)
_BLOCK_PARTS = [r".*blocks\.\d+\.(attn|attn1|attn2|ffn|ff)"]
_ONE_STATE = (
    "it keeps one state for both guidance branches, which this pipeline calls one after the other: half of what it "
    "reuses is the other branch's"
)
_ONE_BATCH = "it splits a batch that holds both guidance branches, and this pipeline calls them one after the other"


def diffusers_methods() -> list[Method]:
    """All of them."""
    return [
        _method("fbcache", "First Block Cache", _only({}, _THRESHOLD), lambda _, s: FirstBlockCacheConfig(**s)),
        _method("taylorseer", "TaylorSeer", _taylorseer_full, _taylorseer),
        _method("taylorseer-lite", "TaylorSeer lite", _taylorseer_lite, _taylorseer),
        _method("magcache", "MagCache", _magcache_variants, _magcache, calibrate=_magcache_ratios),
        _method("seacache", "SeaCache", _seacache_variants, lambda _, s: SeaCacheConfig(**s)),
        _method("pab", "Pyramid Attention Broadcast", _pab_variants, _pab, note_of_two_calls=_ONE_STATE),
        _method("fastercache", "FasterCache", _fastercache_variants, _fastercache, note_of_two_calls=_ONE_BATCH),
    ]


@contextmanager
def cache_enabled(bench: Bench, config: Any) -> Generator[None]:
    """A cache of diffusers on the transformer; its state is new, and gone at the end."""
    transformer = bench.pipe.transformer
    transformer.enable_cache(config)
    try:
        yield
    finally:
        transformer.disable_cache()


def _method(
    key: str,
    label: str,
    variants: Callable[[Bench, float], list[Variant]],
    make: Callable[[Bench, Settings], Any],
    **more: Any,
) -> Method:
    @contextmanager
    def apply(bench: Bench, settings: Settings) -> Generator[GenerateConfig]:
        with cache_enabled(bench, make(bench, settings)):
            yield bench.config

    return Method(f"diffusers-{key}", f"{label} (diffusers {diffusers.__version__})", variants, apply, **more)


def _timestep(bench: Bench) -> int:
    now = bench.pipe.current_timestep
    assert now is not None  # asked for inside the denoising loop only
    return int(now)


def _only(settings: Settings, knob: Knob) -> Callable[[Bench, float], list[Variant]]:
    return lambda bench, target: [Variant(settings, knob)]


def _taylorseer(bench: Bench, settings: Settings) -> TaylorSeerCacheConfig:
    # Its default keeps derivatives in bfloat16, which would cost a float32 model accuracy for nothing.
    return TaylorSeerCacheConfig(taylor_factors_dtype=getattr(torch, bench.config.dtype), **settings)


def _taylorseer_full(bench: Bench, target: float) -> list[Variant]:
    # Its own default pattern, `^blocks.*attn`, is matched against whole names and finds none of attn1 and attn2.
    return _taylorseer_variants(bench, target, {"cache_identifiers": _BLOCK_PARTS}, bench.skip_cost)


def _taylorseer_lite(bench: Bench, target: float) -> list[Variant]:
    return _taylorseer_variants(bench, target, {"use_lite_mode": True}, bench.skip_cost - bench.head_cost)


def _taylorseer_variants(bench: Bench, target: float, settings: Settings, skip_cost: float) -> list[Variant]:
    steps = bench.config.steps
    knob = Knob("disable_cache_before_step", values=tuple(range(1, steps)), rising=True)

    def predict(chosen: Settings) -> float:
        interval, before, after = (chosen[k] for k in ("cache_interval", knob.name, "disable_cache_after_step"))
        full = sum(s < before or s >= after or (s - before - 1) % interval == 0 for s in range(steps))
        return full + (steps - full) * skip_cost

    shape = {**settings, "disable_cache_after_step": steps - 1}
    orders = [(interval, 1) for interval in intervals(steps, target)] + [(intervals(steps, target)[1], 2)]
    return [Variant({**shape, "cache_interval": i, "max_order": order}, knob, predict) for i, order in orders]


def _magcache(bench: Bench, settings: Settings) -> MagCacheConfig:
    return MagCacheConfig(num_inference_steps=bench.config.steps, **settings)


def _magcache_variants(bench: Bench, target: float) -> list[Variant]:
    few = max(1, round(0.2 * target))  # warm-up steps must leave some of the budget
    return [
        Variant({"max_skip_steps": 3, "retention_ratio": 0.2}, _THRESHOLD),
        Variant({"max_skip_steps": 12, "retention_ratio": few / bench.config.steps}, _THRESHOLD),
    ]


def _magcache_ratios(bench: Bench, run: Callable[[], None]) -> Settings:
    """Its own calibration, which it prints: one list per branch and clip, of which the mean is taken."""
    said = io.StringIO()
    config = MagCacheConfig(calibrate=True, num_inference_steps=bench.config.steps)
    with cache_enabled(bench, config), redirect_stdout(said):
        run()
    lists = [ast.literal_eval(line) for line in said.getvalue().splitlines() if line.startswith("[") and "," in line]
    if not lists:
        raise NotPossible("its calibration said nothing")
    return {"mag_ratios": [sum(values) / len(lists) for values in zip(*lists, strict=True)]}


def _seacache_variants(bench: Bench, target: float) -> list[Variant]:
    free = {"max_consecutive_cached": 0, "retention_steps": 3}
    return [
        Variant({}, _THRESHOLD),
        Variant({"residual_order": 1, **free}, _THRESHOLD),
        Variant({"residual_order": 0, **free}, _THRESHOLD),
    ]


def _pab(bench: Bench, settings: Settings) -> PyramidAttentionBroadcastConfig:
    every = settings["skip_range"]
    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=every,
        cross_attention_block_skip_range=every,
        spatial_attention_timestep_skip_range=tuple(settings["timesteps"]),
        cross_attention_timestep_skip_range=tuple(settings["timesteps"]),
        current_timestep_callback=lambda: _timestep(bench),
    )


def _pab_variants(bench: Bench, target: float) -> list[Variant]:
    knob = Knob("skip_range", values=tuple(range(2, 2 * bench.config.steps)))
    return [Variant({"timesteps": list(_EVERY_TIMESTEP)}, knob)]


def _fastercache(bench: Bench, settings: Settings) -> FasterCacheConfig:
    return FasterCacheConfig(
        spatial_attention_block_skip_range=settings["skip_range"],
        spatial_attention_timestep_skip_range=_EVERY_TIMESTEP,
        unconditional_batch_skip_range=settings["skip_range"],
        unconditional_batch_timestep_skip_range=_EVERY_TIMESTEP,
        attention_weight_callback=lambda _: 0.5,
        tensor_format="BCFHW",
        current_timestep_callback=lambda: _timestep(bench),
    )


def _fastercache_variants(bench: Bench, target: float) -> list[Variant]:
    return [Variant({}, Knob("skip_range", values=tuple(range(2, bench.config.steps))))]
