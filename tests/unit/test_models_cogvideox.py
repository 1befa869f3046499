"""CogVideoX: what its pipelines do, what its variants differ in, and text beside the video."""

import pytest
import torch
from cogvideox_random import HEAD_DIM, HEADS, TOKENS, VARIANTS, denoise, inputs, noise, random_transformer
from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline
from diffusers.hooks import apply_group_offloading

from tapvideo import ScheduleConfig, TapConfig, enable_tap
from tapvideo.checks import ConfigError
from tapvideo.config import RecomputeConfig
from tapvideo.memory import kept_on_this_rank
from tapvideo.models import adapter_for
from tapvideo.models.joint_attention import call_on, check_processor
from tapvideo.parallel.attention import SequenceAttention
from tapvideo.parallel.comm import Comm
from tapvideo.parallel.topology import alone

STEPS = 7
SCHEDULE = ScheduleConfig(kind="explicit", steps=[0, 1, 4], warmup=1, min_steps=0)
CPU = torch.device("cpu")


def config(budget=0.0, **changes):
    return TapConfig(schedule=SCHEDULE, recompute=RecomputeConfig(budget=budget, **changes), maps=True)


def pipeline(variant):
    """No text encoder and no VAE: prompts come as embeddings, and latents are what is asked for."""
    parts = {"tokenizer": None, "text_encoder": None, "vae": None}
    pipe = CogVideoXPipeline(transformer=random_transformer(variant, 2), scheduler=CogVideoXDDIMScheduler(), **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make(pipe, guidance=6.0):
    text, negative = torch.randn(2, 1, 7, 8, generator=torch.Generator().manual_seed(5))
    return pipe(
        prompt_embeds=text,
        negative_prompt_embeds=negative,
        height=80,
        width=112,
        num_frames=9,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).frames


def stream_of(transformer, latents=None):
    """What block 0 gets, and what its attention does."""
    seen = {}
    block = transformer.transformer_blocks[0]
    handles = [
        block.register_forward_pre_hook(lambda _, args, kwargs: seen.update(block=(args, kwargs)), with_kwargs=True),
        block.attn1.register_forward_pre_hook(lambda _, args, kwargs: seen.update(attn=kwargs), with_kwargs=True),
    ]
    with torch.no_grad():
        transformer(**inputs(transformer, noise(transformer) if latents is None else latents, 500))
    for handle in handles:
        handle.remove()
    return adapter_for(transformer).stream(*seen["block"]), seen["attn"]["hidden_states"]


@pytest.mark.parametrize("variant", ["2b", "5b", "1.5"])
def test_pipelines_tell_no_steps_and_are_accelerated(variant):
    """They name their calls `cond_uncond` and nothing else."""
    pipe = pipeline(variant)
    plain = make(pipe)
    tap = enable_tap(pipe, TapConfig(schedule=ScheduleConfig(interval=1, min_steps=0)))
    assert torch.equal(make(pipe), plain)
    tap.disable()
    tap = enable_tap(pipe, config(0.2))
    assert not torch.equal(make(pipe), plain)
    assert tap.summary().full_steps == SCHEDULE.steps
    assert {r.branch for r in tap.trace.records} == {"cond_uncond"}
    tap.disable()
    assert torch.equal(make(pipe), plain)


def test_without_guidance_the_batch_is_not_doubled():
    pipe = pipeline("5b")
    tap = enable_tap(pipe, config())
    make(pipe, guidance=1.0)
    assert {len(r.choice) for r in tap.trace.records if r.choice is not None} == {1}


@pytest.mark.parametrize("variant", VARIANTS)
def test_sizes_are_the_model_s_own(variant):
    transformer = random_transformer(variant)
    adapter, call = adapter_for(transformer), inputs(transformer, noise(transformer), 500)
    rows, columns = 5, 7
    assert adapter.token_grid(transformer, adapter.latent_size(call)) == (TOKENS[variant] // 35, rows, columns)
    with torch.no_grad():
        (out,) = transformer(**call, return_dict=False)
    assert adapter.empty_output(transformer, call).shape == out.shape
    assert stream_of(transformer)[0].hidden.shape[1] == TOKENS[variant]


@pytest.mark.parametrize("variant", VARIANTS)
def test_probe_is_the_input_of_the_first_attention_also_of_some_tokens(variant):
    transformer = random_transformer(variant)
    adapter, (stream, expected) = adapter_for(transformer), stream_of(transformer)
    block, some = transformer.transformer_blocks[0], torch.tensor([0, 3, 36, 69])
    with torch.no_grad():
        assert torch.equal(adapter.modulated_input(block, stream), expected)
        fewer = adapter.take_tokens(stream, some)
        torch.testing.assert_close(adapter.modulated_input(block, fewer), expected[:, some])
    assert fewer.text is stream.text


def test_every_half_and_clip_of_a_batch_is_what_it_is_alone():
    """Tokens choose by (batch, token): guidance in one batch is guidance in two calls."""
    transformer = random_transformer()
    tap = enable_tap(transformer, config())
    drift, outputs, choices = noise(transformer, 2, seed=7), {}, {}
    for branch, part in (("both", slice(0, 2)), ("a", slice(0, 1)), ("b", slice(1, 2))):
        for step in range(STEPS):
            now = noise(transformer, 2) + 0.3 * step**2 * drift
            call = inputs(transformer, now, 900 - 100 * step, is_guided=False)
            for name in ("hidden_states", "encoder_hidden_states", "timestep"):
                call[name] = call[name][part]
            with torch.no_grad(), transformer.cache_context(branch, step_index=step, num_inference_steps=STEPS):
                outputs[branch, step] = transformer(**call, return_dict=False)[0]
        choices[branch] = [r.choice for r in tap.trace.records if r.choice is not None]
    for step in range(STEPS):
        each = torch.cat([outputs["a", step], outputs["b", step]])
        torch.testing.assert_close(outputs["both", step], each, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(x, torch.cat([y, z])) for x, y, z in zip(*choices.values(), strict=True))
    assert not all(torch.equal(y, z) for y, z in zip(choices["a"], choices["b"], strict=True))


def test_text_is_returned_as_it_came_on_a_forecast_step():
    transformer = random_transformer()
    tap, texts = enable_tap(transformer, config(0.3)), {}
    stack = tap._stacks[0]
    result = stack.adapter.result

    def look(stream):
        texts[stack.call[0].step] = stream.text
        return result(stream)

    stack.adapter.result = look
    denoise(transformer, steps=STEPS)
    embedded = texts[2]
    assert all(torch.equal(texts[step], embedded) for step in (3, 5, 6))
    assert all(not torch.equal(texts[step], embedded) for step in SCHEDULE.steps)


@pytest.mark.parametrize("is_fused", [False, True])
def test_recomputing_every_token_is_a_full_step(is_fused):
    transformer = random_transformer()
    if is_fused:
        transformer.fuse_qkv_projections()
    plain = denoise(transformer, steps=STEPS)
    tap = enable_tap(transformer, config(1.0))
    assert (denoise(transformer, steps=STEPS) - plain).abs().max() <= 1e-5
    assert tap.trace.shares(2) == {"recomputed": 1.0} | {k: 0.0 for k in tap.trace.shares(2) if k != "recomputed"}


def test_layers_that_keep_nothing_still_see_the_text():
    transformer = random_transformer()
    plain = denoise(transformer, steps=STEPS)
    distances = []
    for layers in ([], [0, 2]):
        tap = enable_tap(transformer, config(0.4, kv_layers=layers))
        distances.append((denoise(transformer, steps=STEPS) - plain).norm())
        tap.disable()
    assert distances[0] < distances[1] < 3 * distances[0]


def test_kept_bytes_are_the_video_s_alone_and_known_before_the_run():
    transformer, chosen = random_transformer("1.5"), config(0.3)
    promised = kept_on_this_rank(transformer, chosen, alone(), latent_size=(4, 10, 14), num_steps=STEPS, branches=2)
    tap = enable_tap(transformer, chosen)
    denoise(transformer, steps=STEPS)
    assert (tap.summary().state_bytes, tap.summary().kv_bytes) == (promised.anchors, promised.kv)
    assert promised.kv == 2 * 3 * 2 * 70 * HEADS * HEAD_DIM * 4  # clips in the batch, layers, K and V


def test_foreign_attention_is_refused_in_one_line():
    class Foreign:
        pass

    transformer = random_transformer()
    transformer.transformer_blocks[1].attn1.processor = Foreign()
    with pytest.raises(ValueError, match=r"a Foreign here; .*CogVideoXAttnProcessor2_0 or FusedCogVideoX"):
        enable_tap(transformer, config(0.3))


def test_xfuser_s_attention_is_refused_in_one_line():
    class Two(Comm):
        def __init__(self):
            super().__init__()
            self.size = 2

    attention = SequenceAttention(Two(), full="usp", exchange="allgather_q")
    with pytest.raises(ConfigError, match=r"parallel.attention='usp' .* allowed with it: auto, ulysses, allgather_kv"):
        check_processor(object(), (object,), attention)


def test_probe_wakes_no_offloaded_weights(monkeypatch):
    transformer = random_transformer()
    norm = transformer.transformer_blocks[0].norm1
    given = torch.randn(1, 5, HEADS * HEAD_DIM), torch.randn(1, 2, HEADS * HEAD_DIM), torch.randn(1, 8)
    expected, woken = norm(*given), []
    apply_group_offloading(transformer, onload_device=CPU, offload_device=CPU, offload_type="leaf_level")
    monkeypatch.setattr("diffusers.hooks.group_offloading.ModuleGroup.onload_", lambda group: woken.append(group))
    assert all(torch.equal(a, b) for a, b in zip(call_on(CPU, norm, *given), expected, strict=True))
    assert not woken
    with pytest.raises(ValueError, match="sequential CPU offload"):
        call_on(CPU, torch.nn.Linear(2, 2, device="meta"), torch.zeros(2))
