"""The method as a whole: what a forecast step chooses and makes, against every candidate written out in fp64."""

import gc

import pytest
import torch
from diffusers.models.lora import LoRALinearLayer

from tapvideo import ScheduleConfig, TapConfig, enable_tap
from tapvideo.chunks import exact_fp32
from tapvideo.predictors import candidate_bank
from tapvideo.schedule import StepKind

FORECAST_STEP = 9


@pytest.mark.parametrize("proxy", ["cosine", "l2"])
def test_forecast_step_is_the_best_candidate_of_every_token(wan, pipe, proxy):
    config = TapConfig(proxy=proxy, schedule=ScheduleConfig(interval=4))
    tap = enable_tap(pipe, config)
    inputs, outs = {}, {}
    stack = pipe.transformer._diffusers_hook.get_hook("tapvideo").stack
    stack.register_forward_pre_hook(lambda _, args: inputs.__setitem__(len(inputs), args))
    stack.register_forward_hook(lambda *a: outs.__setitem__(len(outs), a[-1]))
    wan.denoise(pipe, steps=16, guidance=1.0)
    adapter = stack.adapter
    probes = {s: adapter.modulated_input(pipe.transformer.blocks[0], adapter.stream(inputs[s], {})) for s in inputs}
    anchors = [6, 2, 1]  # full steps before FORECAST_STEP, newest first
    residuals = [outs[s].double() - inputs[s][0].double() for s in anchors]
    bank = candidate_bank(
        [float(s) for s in anchors], float(FORECAST_STEP), steps_ahead=3,
        family="taylor", orders=[0, 1, 2], lookback=4.0, spacing=1.0,
    ).weights.double()  # fmt: skip
    forecasts = torch.einsum("pk,kbnd->pbnd", bank, torch.stack([probes[s].double() for s in anchors]))
    truth = probes[FORECAST_STEP].double()
    if proxy == "l2":
        error = (forecasts - truth).norm(dim=-1) / truth.norm(dim=-1)
    else:
        error = 1 - torch.cosine_similarity(forecasts, truth[None].expand_as(forecasts), dim=-1)
    best = error.argmin(0)
    record = tap.trace.records[FORECAST_STEP]
    assert record.kind is StepKind.FORECAST
    assert (record.choice == best).float().mean() >= 0.999
    assert len(best.unique()) > 1  # or the test would not tell a choice from a constant
    weights = bank[record.choice.long()]
    expected = inputs[FORECAST_STEP][0].double() + torch.einsum("bnk,kbnd->bnd", weights, torch.stack(residuals))
    torch.testing.assert_close(outs[FORECAST_STEP].double(), expected, atol=1e-5, rtol=1e-5)


def test_choice_is_made_in_fp32_under_autocast():
    from tapvideo.probe import forms, gram, proxy_error

    probe, *anchors = torch.randn(4, 1, 64, 32, generator=torch.Generator().manual_seed(0))
    expected = proxy_error(gram(probe, anchors), forms(torch.eye(3)), proxy="l2")
    with torch.autocast("cpu", torch.bfloat16), exact_fp32(torch.device("cpu")):
        assert torch.equal(proxy_error(gram(probe, anchors), forms(torch.eye(3)), proxy="l2"), expected)


def test_autocast_around_a_run_leaves_finite_latents_and_all_forecasts(wan, pipe):
    tap = enable_tap(pipe)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(wan.denoise(pipe)).all()
    assert len(tap.summary().forecast_steps) == 9


def test_lora_layers_are_found_inside_a_forward(wan):
    """Diffusers scales LoRA by walking `modules()` within the transformer's forward, while the blocks are swapped."""
    transformer = wan.random_transformer()
    transformer.blocks[1].lora = LoRALinearLayer(4, 4)
    found = []
    transformer.patch_embedding.register_forward_hook(
        lambda *_: found.append(any(isinstance(m, LoRALinearLayer) for m in transformer.modules()))
    )
    keys = []
    transformer.patch_embedding.register_forward_hook(lambda *_: keys.append(list(transformer.state_dict())))
    enable_tap(transformer)
    with torch.no_grad(), transformer.cache_context("cond", step_index=0, num_inference_steps=20):
        transformer(torch.randn(1, 4, 2, 4, 4), torch.tensor([900.0]), torch.randn(1, 6, 8), return_dict=False)
    assert found == [True]
    assert keys == [list(transformer.state_dict())]


def test_explicit_plan_is_kept_to_the_step(wan, pipe):
    tap = enable_tap(pipe, TapConfig(schedule=ScheduleConfig(kind="explicit", steps=[0, 5, 10, 15])))
    wan.denoise(pipe)
    assert tap.summary().full_steps == [0, 5, 10, 15]


def test_gradients_do_not_disturb(wan):
    transformer = wan.random_transformer()
    enable_tap(transformer)
    for step in range(6):
        with transformer.cache_context("cond", step_index=step, num_inference_steps=20):
            latents = torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(step))
            time = torch.tensor([900.0 - step])
            transformer(latents, time, torch.ones(1, 6, 8), return_dict=False)
    states = transformer._diffusers_hook.get_hook("tapvideo").states
    (named,) = states._state_cache.values()
    assert not any(t.requires_grad for t in (*named.branch.probes, *named.branch.residuals))


def test_live_features_are_the_anchors_and_nothing_else(wan, pipe):
    """Counts every tensor of the features' shape that outlives a step, not what the history says of itself."""
    enable_tap(pipe)
    counts = {}

    def count(_pipe, step, _time, tensors):
        if step in (2, 8, 15):
            gc.collect()
            shape = (1, 12, 32)
            counts[step] = sum(1 for o in gc.get_objects() if type(o) is torch.Tensor and o.shape == shape)
        return tensors

    wan.denoise(pipe, callback_on_step_end=count)
    assert counts[2] == counts[8] == 3 * (2 + 1)  # anchors x (a residual of each branch, and a probe of both)
    assert counts[15] == 0  # gone before the VAE needs the room


def test_second_expert_does_not_see_an_aborted_run(wan, pipe):
    """Wan 2.2's layout: a run that stops in the second expert, then one with another number of steps."""
    pipe.transformer_2 = wan.random_transformer(seed=5)
    pipe.register_to_config(boundary_ratio=0.9)
    clean = wan.denoise(pipe, steps=30, guidance_scale_2=5.0)
    tap = enable_tap(pipe)
    expected = wan.denoise(pipe, steps=30, guidance_scale_2=5.0)
    assert not torch.equal(expected, clean)

    def stop(_pipe, step, _time, tensors):
        if step == 12:
            raise KeyboardInterrupt
        return tensors

    with pytest.raises(KeyboardInterrupt):
        wan.denoise(pipe, steps=16, seed=3, guidance_scale_2=5.0, callback_on_step_end=stop)
    assert torch.equal(wan.denoise(pipe, steps=30, guidance_scale_2=5.0), expected)
    assert sum(len(trace.records) for trace in tap.traces.values()) == 60


def test_sigma_coordinates_do_not_mix_runs_of_other_lengths(wan, pipe):
    schedule = ScheduleConfig(kind="explicit", steps=[0, 1, 2, 4, 8])
    enable_tap(pipe, TapConfig(coordinate="sigma", schedule=schedule)).disable()
    tap = enable_tap(pipe, TapConfig(coordinate="sigma", schedule=schedule))
    expected = wan.denoise(pipe, steps=40)
    tap.disable()
    enable_tap(pipe, TapConfig(coordinate="sigma", schedule=schedule))
    wan.denoise(pipe, steps=20)
    assert torch.equal(wan.denoise(pipe, steps=40), expected)


def test_token_grid_is_frames_rows_columns(wan, pipe):
    tap = enable_tap(pipe)
    wan.denoise(pipe, frames=5, size=32, width=64)
    assert tap.trace.grid == (2, 2, 4)


def test_the_first_expert_lets_go_of_its_anchors_at_the_hand_over(wan, pipe):
    pipe.transformer_2 = wan.random_transformer(seed=5)
    pipe.register_to_config(boundary_ratio=0.9)
    enable_tap(pipe, TapConfig())
    held = []

    def look(pipe, step, timestep, tensors):
        hooks = [t._diffusers_hook.get_hook("tapvideo") for t in (pipe.transformer, pipe.transformer_2)]
        held.append([sum(s.branch.num_bytes for s in hook.states._state_cache.values()) for hook in hooks])
        return {}

    wan.denoise(pipe, callback_on_step_end=look)
    first, second = zip(*held, strict=True)
    assert max(first) > 0
    assert max(second) > 0
    assert all(not (one and other) for one, other in held)
