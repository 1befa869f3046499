"""TAP on a pipeline: equal to plain diffusers where it must be, and robust where users are careless."""

import inspect
import logging
from dataclasses import replace

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from diffusers.hooks import HookRegistry

from tapvideo import ScheduleConfig, TapConfig, disable_tap, enable_tap
from tapvideo.config import ConfigError
from tapvideo.models.hook import TapHook

PRESETS = {
    "paper": {},
    "reuse": {"family": "reuse", "orders": [0]},
    "taylor1": {"orders": [1], "lookback": 0.0},
    "taylor2": {"orders": [2], "lookback": 0.0},
    "lagrange2": {"family": "lagrange", "orders": [2], "lookback": 0.0},
    "l2-sample-block": {"proxy": "l2", "choice": "sample", "probe": "block_residual"},
}


def config(preset="paper", interval=4, **schedule):
    return TapConfig(schedule=ScheduleConfig(interval=interval, **schedule), **PRESETS[preset])


@pytest.mark.parametrize("preset", PRESETS)
def test_interval_one_equals_plain_bit_for_bit(wan, pipe, preset):
    plain = wan.denoise(pipe)
    enable_tap(pipe, config(preset, interval=1))
    assert torch.equal(wan.denoise(pipe), plain)


@pytest.mark.parametrize("preset", PRESETS)
def test_disable_restores_plain_bit_for_bit(wan, pipe, preset):
    plain, forward = wan.denoise(pipe), pipe.transformer.forward
    tap = enable_tap(pipe, config(preset))
    assert not torch.equal(wan.denoise(pipe), plain)
    tap.disable()
    assert torch.equal(wan.denoise(pipe), plain)
    assert pipe.transformer.forward == forward
    assert HookRegistry.check_if_exists_or_initialize(pipe.transformer).hooks == {}


@pytest.mark.parametrize("preset", PRESETS)
def test_forecasts_stay_near_the_plain_run(wan, pipe, preset):
    plain = wan.denoise(pipe, steps=40)
    enable_tap(pipe, config(preset, interval=2))
    assert (wan.denoise(pipe, steps=40) - plain).norm() < 0.05 * plain.norm()


def test_blocks_run_on_full_steps_only(wan, pipe):
    calls = []
    for block in pipe.transformer.blocks:
        block.register_forward_hook(lambda *_: calls.append(1))
    tap = enable_tap(pipe, config())
    wan.denoise(pipe)
    summary = tap.summary()
    assert summary.full_steps == [0, 1, 2, 6, 10, 14, 15]
    assert summary.forecast_steps == [s for s in range(16) if s not in summary.full_steps]
    assert len(calls) == 2 * 3 * 7  # branches x blocks x full steps


def test_block_probe_runs_its_blocks_on_every_step(wan, pipe):
    calls = {0: 0, 1: 0, 2: 0}
    for i, block in enumerate(pipe.transformer.blocks):
        block.register_forward_hook(lambda *_, i=i: calls.__setitem__(i, calls[i] + 1))
    enable_tap(pipe, TapConfig(probe="block_output", probe_depth=2))
    wan.denoise(pipe)
    assert calls == {0: 32, 1: 32, 2: 14}


def test_works_without_guidance(wan, pipe):
    tap = enable_tap(pipe, config())
    wan.denoise(pipe, guidance=1.0)
    assert {r.branch for r in tap.trace.records} == {"cond"}
    assert len(tap.summary().forecast_steps) == 9


def test_every_clip_of_a_batch_is_what_it_is_alone(wan, pipe):
    """Per-token and per-sample choices must not mix clips."""
    for preset in ("paper", "l2-sample-block"):
        tap = enable_tap(pipe, config(preset))
        both = wan.denoise(pipe, batch=1, num_videos_per_prompt=2)
        noise = torch.randn(both.shape, generator=torch.Generator().manual_seed(0))
        alone = wan.denoise(pipe, batch=1, latents=noise[1:])
        torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=1e-5)
        tap.disable()


def test_runs_in_a_row_do_not_see_each_other(wan, pipe):
    enable_tap(pipe, config())
    first = wan.denoise(pipe)
    wan.denoise(pipe, size=48, frames=5, batch=2)
    assert torch.equal(wan.denoise(pipe), first)


def test_run_after_an_exception_starts_clean(wan, pipe):
    tap = enable_tap(pipe, config())
    first = wan.denoise(pipe)

    def stop(pipe, step, timestep, tensors):
        if step == 8:
            raise KeyboardInterrupt
        return tensors

    with pytest.raises(KeyboardInterrupt):
        wan.denoise(pipe, seed=5, callback_on_step_end=stop)
    assert torch.equal(wan.denoise(pipe), first)
    assert len(tap.trace.records) == 32


def test_exception_inside_a_block_restores_the_blocks(wan, pipe):
    blocks = pipe.transformer.blocks
    handle = blocks[1].register_forward_pre_hook(lambda *_: 1 / 0)
    enable_tap(pipe, config())
    with pytest.raises(ZeroDivisionError):
        wan.denoise(pipe)
    assert pipe.transformer.blocks is blocks
    handle.remove()
    assert torch.isfinite(wan.denoise(pipe)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(wan, pipe, dtype):
    pipe.transformer.to(dtype)
    plain = wan.denoise(pipe)
    tap = enable_tap(pipe, config(interval=2))
    accelerated = wan.denoise(pipe)
    assert torch.isfinite(accelerated).all()
    assert (accelerated - plain).norm() < 0.15 * plain.norm()
    tokens, dim = 3 * 2 * 2, 32
    assert tap.summary().state_bytes == (2 + 1) * 3 * tokens * dim * dtype.itemsize


@pytest.mark.parametrize("num_layers", [2, 6])
def test_state_is_two_streams_of_anchors_whatever_the_depth(wan, num_layers):
    pipe = wan.random_pipeline(num_layers=num_layers)
    tap = enable_tap(pipe, config())
    wan.denoise(pipe)
    tokens, dim = 3 * 2 * 2, 32
    stream = 3 * tokens * dim * 4
    assert tap.trace.state_bytes == {
        "cond": 2 * stream,
        "uncond": stream,
    }  # of probes from the same latents, one is kept


def test_state_is_freed_when_the_run_ends(wan, pipe):
    enable_tap(pipe, config())
    wan.denoise(pipe)
    hook = HookRegistry.check_if_exists_or_initialize(pipe.transformer).get_hook("tapvideo")
    assert isinstance(hook, TapHook)
    assert hook.states._state_cache == {}


def test_one_candidate_keeps_no_probe(wan, pipe):
    tap = enable_tap(pipe, config("taylor1"))
    wan.denoise(pipe)
    assert tap.trace.state_bytes["cond"] == 3 * 12 * 32 * 4


def test_state_dict_is_untouched_while_enabled(wan, pipe):
    before = list(pipe.transformer.state_dict())
    enable_tap(pipe, config())
    wan.denoise(pipe)
    assert list(pipe.transformer.state_dict()) == before


def test_summary_speaks(wan, pipe):
    tap = enable_tap(pipe, config())
    assert repr(tap) == "<Tap paper on WanTransformer3DModel, schedule=interval; last run: none>"
    wan.denoise(pipe)
    assert repr(tap).endswith("; last run: 7 full and 9 forecast steps>")
    summary = tap.summary()
    assert str(summary).startswith("7 full and 9 forecast of 16 steps")
    assert set(summary.shares) == set(summary.forecast_steps)
    for shares in summary.shares.values():
        assert sum(shares.values()) == pytest.approx(1.0)
    tap.disable()
    tap = enable_tap(pipe, replace(config(), maps=False))  # nothing is kept of the tokens, but the shares are
    wan.denoise(pipe)
    assert all(record.choice is None for record in tap.trace.records)
    for step, shares in tap.summary().shares.items():
        assert shares == pytest.approx(summary.shares[step])


def test_few_step_runs_are_left_alone(wan, pipe, caplog):
    plain = wan.denoise(pipe, steps=4)
    enable_tap(pipe, config())
    with caplog.at_level(logging.WARNING):
        assert torch.equal(wan.denoise(pipe, steps=4), plain)
    assert sum("not accelerated" in r.message for r in caplog.records) == 1


def test_sigma_coordinates_follow_the_scheduler(wan, pipe):
    tap = enable_tap(pipe, TapConfig(coordinate="sigma"))
    by_sigma = wan.denoise(pipe)
    assert all(r.sigma is not None for r in tap.trace.records)
    tap.disable()
    enable_tap(pipe, TapConfig())
    assert not torch.equal(wan.denoise(pipe), by_sigma)


def test_enabling_twice_is_refused(pipe):
    enable_tap(pipe)
    with pytest.raises(ValueError, match="enabled on this transformer already"):
        enable_tap(pipe.transformer)


def test_enabling_beside_a_cache_of_diffusers_is_refused(pipe):
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ValueError, match="disable_cache"):
        enable_tap(pipe)


def test_disabling_twice_is_refused(pipe):
    enable_tap(pipe)
    disable_tap(pipe)
    with pytest.raises(ValueError, match="not enabled"):
        disable_tap(pipe)


def test_unknown_model_is_refused():
    with pytest.raises(ValueError, match=r"Linear is not supported; supported: .*WanTransformer3DModel"):
        enable_tap(torch.nn.Linear(1, 1))


def test_object_without_transformer_is_refused():
    with pytest.raises(ValueError, match="has no transformer or transformer_2"):
        enable_tap(object())


def test_probe_depth_of_all_blocks_is_refused(pipe):
    with pytest.raises(ValueError, match=r"tap\.probe_depth=3 of a model with 3 blocks; allowed: 1 to 2"):
        enable_tap(pipe, TapConfig(probe="block_output", probe_depth=3))
    enable_tap(pipe)  # nothing was left behind


@pytest.mark.parametrize("config", [3, "default", {"orders": [1]}, TapConfig])
def test_what_is_no_config_is_named(wan, config):
    """Users have no type checks around their calls, as tests do."""
    transformer = wan.random_transformer()
    with pytest.raises(ConfigError, match=r"config=.* is no TapConfig; allowed: TapConfig\(\.\.\.\), or what"):
        inspect.unwrap(enable_tap)(transformer, config)
    enable_tap(transformer)  # nothing was left behind
