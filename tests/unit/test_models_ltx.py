"""LTX-Video: fused guidance, packed latents, text with a mask, timesteps per token."""

import ltx_random as ltx
import pytest
import torch
from diffusers.hooks import HookRegistry
from PIL import Image

from tapvideo import ScheduleConfig, TapConfig, enable_tap
from tapvideo.config import RecomputeConfig
from tapvideo.memory import kept_on_this_rank
from tapvideo.models import adapter_for
from tapvideo.parallel.topology import alone

ODD = {"frames": 9, "size": 32, "width": 64}  # 3 x 4 x 8 tokens of 32 numbers


@pytest.fixture
def pipe():
    return ltx.random_pipeline()


@pytest.fixture
def image_pipe():
    return ltx.random_pipeline(image=True)


def picture(seed=0, width=32):
    noise = torch.randint(0, 256, (32, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


def config(interval=4, **changes):
    return TapConfig(schedule=ScheduleConfig(interval=interval), **changes)


def call(transformer, step, num_steps=20, **kwargs):
    with torch.no_grad(), transformer.cache_context("cond_uncond", step_index=step, num_inference_steps=num_steps):
        return transformer(**ltx.call_inputs(step, **kwargs))[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_interval_one_equals_plain_bit_for_bit(pipe, dtype):
    pipe.transformer.to(dtype)
    plain = ltx.denoise(pipe, **ODD)
    enable_tap(pipe, config(interval=1))
    assert torch.equal(ltx.denoise(pipe, **ODD), plain)


def test_image_to_video_at_interval_one_equals_plain_bit_for_bit(image_pipe):
    plain = ltx.denoise(image_pipe, image=picture())
    enable_tap(image_pipe, config(interval=1))
    assert torch.equal(ltx.denoise(image_pipe, image=picture()), plain)


@pytest.mark.parametrize("recompute", [0.0, 0.3])
def test_disable_restores_plain_bit_for_bit(pipe, recompute):
    plain, forward = ltx.denoise(pipe), pipe.transformer.forward
    processors = [block.attn1.processor for block in pipe.transformer.transformer_blocks]
    tap = enable_tap(pipe, config(recompute=RecomputeConfig(budget=recompute)))
    assert not torch.equal(ltx.denoise(pipe), plain)
    tap.disable()
    assert torch.equal(ltx.denoise(pipe), plain)
    assert pipe.transformer.forward == forward
    assert HookRegistry.check_if_exists_or_initialize(pipe.transformer).hooks == {}
    assert [block.attn1.processor for block in pipe.transformer.transformer_blocks] == processors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("per_token", [False, True])
def test_probe_is_the_input_of_the_first_attention(per_token, dtype):
    transformer, seen = ltx.random_transformer().to(dtype), {}
    block = transformer.transformer_blocks[0]
    block.register_forward_pre_hook(lambda *a: seen.__setitem__("call", a[1:]), with_kwargs=True)
    block.attn1.register_forward_pre_hook(lambda *a: seen.__setitem__("h", a[2]["hidden_states"]), with_kwargs=True)
    with torch.no_grad():
        transformer(**ltx.call_inputs(3, per_token=per_token, dtype=dtype))
        adapter = adapter_for(transformer)
        probe = adapter.modulated_input(block, adapter.stream(*seen["call"]))
    assert torch.equal(probe, seen["h"])


def test_forecast_runs_no_block_and_guidance_is_one_branch(pipe):
    calls = []
    for block in pipe.transformer.transformer_blocks:
        block.register_forward_hook(lambda *_: calls.append(1))
    tap = enable_tap(pipe, config())
    ltx.denoise(pipe)
    summary = tap.summary()
    assert summary.full_steps == [0, 1, 2, 6, 10, 14, 15]
    assert len(calls) == 3 * len(summary.full_steps)
    assert {record.branch for record in tap.trace.records} == {"cond_uncond"}
    assert tap.trace.grid == (3, 4, 4)
    assert all(r.choice.shape == (2, 48) for r in tap.trace.records if r.choice is not None)


def test_guidance_halves_choose_for_themselves(pipe):
    """Each half of a fused batch is forecast as it would be alone."""
    tap = enable_tap(pipe.transformer, config())
    both = [call(pipe.transformer, step) for step in range(8)]
    tap.disable()
    for row in (0, 1):
        enable_tap(pipe.transformer, config())
        for step in range(8):
            inputs = ltx.call_inputs(step)
            own = {k: v[row : row + 1] if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
            context = {"step_index": step, "num_inference_steps": 20}
            with torch.no_grad(), pipe.transformer.cache_context("cond_uncond", **context):
                out = pipe.transformer(**own)[0]
            torch.testing.assert_close(out, both[step][row : row + 1], atol=1e-5, rtol=1e-5)
        tap.disable()


def test_forecasts_stay_near_the_plain_run(pipe):
    plain = ltx.denoise(pipe, steps=40)
    enable_tap(pipe, config(interval=2))
    assert (ltx.denoise(pipe, steps=40) - plain).norm() < 0.05 * plain.norm()


def test_runs_in_a_row_do_not_see_each_other(pipe):
    """The pipeline tells a name and no step: steps are counted, and end with the run."""
    enable_tap(pipe, config())
    first = ltx.denoise(pipe)
    ltx.denoise(pipe, **ODD, batch=2)
    assert torch.equal(ltx.denoise(pipe), first)


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("fp8", [False, True])
def test_recomputing_all_tokens_is_a_full_step(per_token, fp8):
    plain = ltx.random_transformer()
    expected = [call(plain, step, per_token=per_token) for step in range(8)]
    recompute = RecomputeConfig(budget=1.0, kv_dtype="fp8" if fp8 else "model")
    tap = enable_tap(plain, config(recompute=recompute))
    found = [call(plain, step, per_token=per_token) for step in range(8)]
    assert tap.summary().forecast_steps == [3, 4, 5, 7]
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_recomputing_some_tokens_of_image_to_video_comes_nearer(image_pipe):
    plain = ltx.denoise(image_pipe, image=picture(), steps=20)
    errors = []
    for budget in (0.0, 0.5, 1.0):
        tap = enable_tap(image_pipe, config(recompute=RecomputeConfig(budget=budget)))
        errors.append((ltx.denoise(image_pipe, image=picture(), steps=20) - plain).norm().item())
        tap.disable()
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-4


def test_the_mask_of_the_text_reaches_recomputed_tokens():
    """Masked text may be anything: nothing that attends to it may change."""
    transformer = ltx.random_transformer()
    enable_tap(transformer, config(recompute=RecomputeConfig(budget=0.4)))
    made = []
    for noise in (0.0, 5.0):
        outputs = []
        for step in range(8):
            inputs = ltx.call_inputs(step)
            masked = ~inputs["encoder_attention_mask"][..., None]
            inputs["encoder_hidden_states"] = inputs["encoder_hidden_states"] + noise * masked
            context = {"step_index": step, "num_inference_steps": 20}
            with torch.no_grad(), transformer.cache_context("cond_uncond", **context):
                outputs.append(transformer(**inputs)[0])
        made.append(torch.stack(outputs))
    torch.testing.assert_close(made[0], made[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("per_token", [False, True])
def test_a_part_of_the_tokens_has_their_positions_and_timesteps(per_token):
    """Attention apart, a block treats a token alike whoever else is there."""
    transformer, seen = ltx.random_transformer(), {}
    block = transformer.transformer_blocks[0]
    block.register_forward_pre_hook(lambda *a: seen.__setitem__("call", a[1:]), with_kwargs=True)
    with torch.no_grad():
        transformer(**ltx.call_inputs(3, per_token=per_token))
        adapter = adapter_for(transformer)
        stream, positions = adapter.stream(*seen["call"]), torch.tensor([2, 15, 16, 40])
        part = adapter.take_tokens(stream, positions)
        assert torch.equal(adapter.modulated_input(block, part), adapter.modulated_input(block, stream)[:, positions])
        for own, whole in zip(part.rest[2], stream.rest[2], strict=True):
            assert torch.equal(own, whole[:, positions])
        assert part.rest[0] is stream.rest[0]
        assert part.rest[3] is stream.rest[3]
        block.attn1.forward = lambda hidden_states, **_: hidden_states  # every token to itself
        whole = adapter.run(block, stream).hidden[:, positions]
        torch.testing.assert_close(adapter.run(block, part).hidden, whole, atol=1e-6, rtol=1e-6)


def test_blocks_given_by_position_are_read_alike():
    adapter = adapter_for(ltx.random_transformer())
    values = [torch.randn(1, 2, 4) for _ in range(5)]
    names = ("hidden_states", "encoder_hidden_states", "temb", "image_rotary_emb", "encoder_attention_mask")
    by_name = adapter.stream((), dict(zip(names, values, strict=True)))
    by_place = adapter.stream(tuple(values), {})
    assert by_name.hidden is by_place.hidden
    assert all(a is b for a, b in zip(by_name.rest, by_place.rest, strict=True))


def test_tokens_at_coordinates_of_their_own_are_a_line():
    adapter = adapter_for(ltx.random_transformer())
    call = {"hidden_states": torch.zeros(1, 30, 8), "num_frames": None, "video_coords": torch.zeros(1, 3, 30)}
    assert adapter.latent_size(call) == (1, 1, 30)
    assert adapter.latent_size({**call, "num_frames": 2, "height": 3, "width": 5}) == (2, 3, 5)
    assert adapter.latent_size({**call, "num_frames": 2, "height": 3, "width": 4}) == (1, 1, 30)  # reference tokens


def test_foreign_processors_are_refused():
    transformer = ltx.random_transformer()

    class Foreign:
        def __call__(self, *args, **kwargs):
            pytest.fail("enabling runs nothing")

    transformer.transformer_blocks[1].attn1.processor = Foreign()
    with pytest.raises(ValueError, match="self-attention is a Foreign here"):
        enable_tap(transformer, config(recompute=RecomputeConfig(budget=0.1)))


def test_bytes_that_are_kept_are_known_beforehand(pipe):
    tap_config = config(recompute=RecomputeConfig(budget=0.2))
    tap = enable_tap(pipe, tap_config)
    ltx.denoise(pipe, **ODD)
    summary = tap.summary()
    tap.disable()
    kept = kept_on_this_rank(
        pipe.transformer, tap_config, alone(), latent_size=(3, 4, 8), num_steps=16, branches=2
    )  # a fused batch has both guidance branches
    assert (kept.anchors, kept.kv) == (summary.state_bytes, summary.kv_bytes)
