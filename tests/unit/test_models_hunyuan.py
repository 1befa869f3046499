"""HunyuanVideo: its pipeline, its variants, padded text, and a first frame that is an image."""

from contextlib import nullcontext
from types import SimpleNamespace
from unittest import mock

import hunyuan_random
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoPipeline
from hunyuan_random import HEAD_DIM, HEADS, TEXT, VARIANTS, denoise, inputs, noise, random_transformer
from torch.nn.functional import scaled_dot_product_attention

from tapvideo import ScheduleConfig, TapConfig, enable_tap
from tapvideo.config import RecomputeConfig
from tapvideo.memory import kept_on_this_rank
from tapvideo.models import adapter_for
from tapvideo.parallel.attention import Joint
from tapvideo.parallel.lse import attention_part, merge_parts
from tapvideo.parallel.topology import alone

STEPS, TOKENS, FIRST_FRAME = 7, 105, 35
SCHEDULE = ScheduleConfig(kind="explicit", steps=[0, 1, 4], warmup=1, min_steps=0)


def config(budget=0.0, **changes):
    return TapConfig(schedule=SCHEDULE, recompute=RecomputeConfig(budget=budget, **changes), maps=True)


def make(pipe, guidance=1.0):
    """Latents; guidance above 1 is true guidance, beside the embedded one."""
    transformer = pipe.transformer
    cond, uncond = (inputs(transformer, noise(transformer), 0, branch) for branch in ("cond", "uncond"))
    names = {"encoder_hidden_states": "prompt_embeds", "pooled_projections": "pooled_prompt_embeds"}
    names |= {"encoder_attention_mask": "prompt_attention_mask"}
    return pipe(
        **{new: cond[old] for old, new in names.items()},
        **{f"negative_{new}": uncond[old] for old, new in names.items()},
        true_cfg_scale=guidance,
        height=80,
        width=112,
        num_frames=9,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).frames


def stream_of(transformer, batch=2):
    """What block 0 gets, and what its attention does."""
    seen = {}
    block = transformer.transformer_blocks[0]
    handles = [
        block.register_forward_pre_hook(lambda _, args: seen.update(block=args)),
        block.attn.register_forward_pre_hook(lambda _, args, kwargs: seen.update(attn=kwargs), with_kwargs=True),
    ]
    with torch.no_grad():
        transformer(**inputs(transformer, noise(transformer, batch), 500))
    for handle in handles:
        handle.remove()
    return adapter_for(transformer).stream(seen["block"], {}), seen["attn"]["hidden_states"]


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_the_pipeline_tells_no_steps_and_is_accelerated(guidance):
    """It names its calls and nothing else."""
    parts = {"tokenizer": None, "text_encoder": None, "tokenizer_2": None, "text_encoder_2": None, "vae": None}
    pipe = HunyuanVideoPipeline(
        transformer=random_transformer(num_layers=1, num_single_layers=1),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        **parts,
    )
    pipe.set_progress_bar_config(disable=True)
    plain = make(pipe, guidance)
    tap = enable_tap(pipe, TapConfig(schedule=ScheduleConfig(interval=1, min_steps=0)))
    assert torch.equal(make(pipe, guidance), plain)
    tap.disable()
    tap = enable_tap(pipe, config(0.2))
    assert not torch.equal(make(pipe, guidance), plain)
    assert tap.summary().full_steps == SCHEDULE.steps
    assert {r.branch for r in tap.trace.records} == ({"cond"} if guidance == 1 else {"cond", "uncond"})
    tap.disable()
    assert torch.equal(make(pipe, guidance), plain)


def image_to_video(transformer, texts, *, named, fresh=False):
    """As `HunyuanVideoImageToVideoPipeline`, which names no calls and tells no steps."""
    outputs = []
    for step in range(STEPS):
        for branch, text in texts.items():
            call = inputs(transformer, noise(transformer) * (1 + 0.1 * step), 1000 - 100 * step, branch)
            call["encoder_hidden_states"] = text.clone() if fresh else text
            context = transformer.cache_context(branch) if named else nullcontext()
            with torch.no_grad(), context:
                outputs.append(transformer(**call, return_dict=False)[0])
    return torch.stack(outputs)


@pytest.mark.parametrize("branches", [("cond",), ("cond", "uncond")])
def test_branches_that_are_not_named_are_told_by_their_prompts(branches):
    transformer = random_transformer("i2v-tokens", num_layers=1, num_single_layers=1)
    pipe = SimpleNamespace(transformer=transformer, scheduler=SimpleNamespace(timesteps=list(range(STEPS, 0, -1))))
    texts = dict(zip(branches, torch.randn(2, 1, TEXT, 8), strict=False))
    tap = enable_tap(pipe, config())
    expected = image_to_video(transformer, texts, named=True)
    for _ in range(2):
        assert torch.equal(image_to_video(transformer, texts, named=False), expected)
        assert tap.summary().full_steps == SCHEDULE.steps
        assert len({r.branch for r in tap.trace.records}) == len(branches)


@pytest.mark.parametrize("is_fresh", [True, False])
def test_prompts_that_are_made_anew_or_used_twice_tell_nothing(is_fresh):
    transformer = random_transformer("i2v-tokens", num_layers=1, num_single_layers=1)
    pipe = SimpleNamespace(transformer=transformer, scheduler=SimpleNamespace(timesteps=list(range(STEPS, 0, -1))))
    text = torch.randn(1, TEXT, 8)
    texts = {"cond": text, "uncond": text.clone() if is_fresh else text}
    plain = image_to_video(transformer, texts, named=False)
    tap = enable_tap(pipe, config())
    assert torch.equal(image_to_video(transformer, texts, named=False, fresh=is_fresh), plain)
    assert tap.trace.records == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_sizes_are_the_model_s_own(variant):
    transformer = random_transformer(variant)
    adapter, call = adapter_for(transformer), inputs(transformer, noise(transformer), 500)
    assert adapter.token_grid(transformer, adapter.latent_size(call)) == (3, 5, 7)
    with torch.no_grad():
        (out,) = transformer(**call, return_dict=False)
    assert adapter.empty_output(transformer, call).shape == out.shape


SOME = torch.tensor([0, 3, 34, 35, 36, 69, 104])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("some", [SOME, SOME[:2], SOME[3:]], ids=["both", "first frame", "others"])
def test_probe_is_the_input_of_the_first_attention_also_of_some_tokens(variant, some):
    transformer = random_transformer(variant)
    adapter, (stream, expected) = adapter_for(transformer), stream_of(transformer)
    block = transformer.transformer_blocks[0]
    with torch.no_grad():
        assert torch.equal(adapter.modulated_input(block, stream), expected)
        fewer = adapter.take_tokens(stream, some)
        torch.testing.assert_close(adapter.modulated_input(block, fewer), expected[:, some])
    assert fewer.text is stream.text


def test_tokens_of_the_first_frame_are_counted_by_position():
    """Of a shard, and of some rows of a shard."""
    transformer = random_transformer("i2v-tokens")
    adapter, (stream, _) = adapter_for(transformer), stream_of(transformer)
    assert stream.rest[4] == FIRST_FRAME
    shard = torch.arange(1, TOKENS, 3)
    mine = adapter.take_tokens(stream, shard)
    assert mine.rest[4] == (shard < FIRST_FRAME).sum() == 12
    rows = torch.tensor([0, 5, 11, 12, 30])
    fewer = adapter.take_tokens(mine, rows)
    assert fewer.rest[4] == 3
    assert torch.equal(fewer.hidden, stream.hidden[:, shard[rows]])
    assert adapter.take_tokens(mine, rows[3:]).rest[4] == 0


def test_masks_and_rotary_tables_go_with_their_tokens():
    transformer = random_transformer()
    adapter, (stream, _) = adapter_for(transformer), stream_of(transformer)
    _, mask, rotary, _, _ = stream.rest
    _, fewer_mask, fewer_rotary, _, _ = adapter.take_tokens(stream, SOME).rest
    assert fewer_mask.shape == (2, 1, 1, len(SOME) + TEXT)
    assert torch.equal(fewer_mask[..., -TEXT:], mask[..., -TEXT:])
    assert fewer_mask[..., -TEXT:].sum(-1).flatten().tolist() == [TEXT - 3, TEXT]
    assert all(torch.equal(fewer, table[SOME]) for fewer, table in zip(fewer_rotary, rotary, strict=True))


def test_both_lists_of_blocks_are_forecast_and_kept_as_one():
    transformer = random_transformer(num_layers=1, num_single_layers=3)
    chosen, ran = config(0.3), []
    promised = kept_on_this_rank(transformer, chosen, alone(), latent_size=(3, 10, 14), num_steps=STEPS, branches=1)
    tap = enable_tap(transformer, chosen)
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        block.register_forward_pre_hook(lambda _, args: ran.append(args[0].shape[1]))
    denoise(transformer, steps=STEPS)
    assert ran.count(TOKENS) == 3 * 4  # full steps, blocks
    assert ran.count(31) == len(ran) - 12 == 4 * 4  # 0.3 of 105 tokens on forecast steps
    assert (tap.summary().state_bytes, tap.summary().kv_bytes) == (promised.anchors, promised.kv)
    assert promised.kv == 4 * 2 * TOKENS * HEADS * HEAD_DIM * 4


def test_text_is_returned_as_it_came_on_a_forecast_step():
    transformer = random_transformer()
    tap, texts = enable_tap(transformer, config(0.3)), {}
    stack = tap._stacks[0]
    stream, result = stack.adapter.stream, stack.adapter.result

    def before(args, kwargs):
        texts["in"] = stream(args, kwargs).text
        return stream(args, kwargs)

    def after(out):
        texts[stack.call[0].step] = out.text is texts["in"]
        return result(out)

    stack.adapter.stream, stack.adapter.result = before, after
    denoise(transformer, steps=STEPS)
    del texts["in"]
    assert texts == {step: step not in SCHEDULE.steps for step in range(STEPS)}


@pytest.mark.parametrize("budget", [0.0, 0.3])
def test_padding_is_seen_by_nobody(budget):
    plain_inputs = hunyuan_random.inputs

    def padded(*args, **kwargs):
        arguments = plain_inputs(*args, **kwargs)
        arguments["encoder_hidden_states"][~arguments["encoder_attention_mask"].bool()] += 100
        return arguments

    transformer = random_transformer()
    enable_tap(transformer, config(budget))
    expected = denoise(transformer, steps=STEPS, batch=2)
    with mock.patch.object(hunyuan_random, "inputs", padded):
        assert (denoise(transformer, steps=STEPS, batch=2) - expected).abs().max() <= 1e-5


def test_attention_backends_reach_our_processor():
    transformer = random_transformer()
    plain = denoise(transformer, steps=STEPS)
    tap = enable_tap(transformer, config(1.0))
    transformer.set_attention_backend("_native_math")
    processors = [block.attn.processor for block in transformer.single_transformer_blocks]
    assert {p.original._attention_backend for p in processors} == {"_native_math"}
    assert (denoise(transformer, steps=STEPS) - plain).abs().max() <= 1e-5
    transformer.reset_attention_backend()
    tap.disable()


def test_foreign_attention_is_refused_in_one_line():
    class Foreign:
        pass

    transformer = random_transformer()
    transformer.single_transformer_blocks[1].attn.processor = Foreign()
    with pytest.raises(ValueError, match=r"a Foreign here; .* HunyuanVideoAttnProcessor2_0"):
        enable_tap(transformer, config(0.3))


# -- attention of text and video


@pytest.mark.parametrize("is_first", [False, True])
def test_text_is_split_off_and_joined_again(is_first):
    joint, rows = Joint(2, is_first), torch.randn(1, 5, 3, 4)
    video, text = joint.split(rows)
    assert torch.equal(text, rows[:, :2] if is_first else rows[:, 3:])
    assert torch.equal(joint.join(video, text), rows)
    pairs = [(video, text[:, :1]), (video[:, :0], text[:, 1:])]
    each = torch.cat([torch.cat(pair[::-1] if is_first else pair, 1) for pair in pairs], 1)
    assert torch.equal(joint.interleave(*zip(*pairs, strict=True)), each)
    mask = torch.tensor([[True, False]])
    found = Joint(2, is_first, mask).key_mask(5).flatten().tolist()
    assert found == ([True, False, True, True, True] if is_first else [True, True, True, True, False])


def test_no_text_is_no_copy():
    rows = torch.randn(1, 5, 3, 4)
    assert Joint().join(*Joint().split(rows)).data_ptr() == rows.data_ptr()
    assert Joint().key_mask(5) is None


def test_masked_keys_have_no_say():
    """Not even where all of a part are masked."""
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 5, 3, 8), 4 * torch.randn(2, 7, 3, 8), torch.randn(2, 7, 3, 8)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0, 0], [1, 0, 1, 1, 1, 0, 1]]).bool()
    by_head = (x.transpose(1, 2) for x in (query, key, value))
    whole = scaled_dot_product_attention(*by_head, attn_mask=mask[:, None, None]).transpose(1, 2)
    parts = [attention_part(query, key[:, s], value[:, s], mask[:, s]) for s in (slice(0, 3), slice(3, 6), slice(6, 7))]
    merged = merge_parts(*(torch.stack(x) for x in zip(*parts, strict=True)))
    torch.testing.assert_close(merged, whole, atol=1e-6, rtol=1e-5)
    out, total = parts[2]
    assert torch.equal(out[0], torch.zeros_like(out[0]))
    assert (total[0] == -torch.inf).all()
