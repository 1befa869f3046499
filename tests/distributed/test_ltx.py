"""LTX-Video on P ranks makes what one rank makes: packed latents, masked text, timesteps of clips or of tokens."""

import ltx_random as ltx
import pytest
import torch
from PIL import Image
from ranks import run_ranks

from tapvideo import ScheduleConfig, TapConfig, enable_tap
from tapvideo.config import RecomputeConfig
from tapvideo.parallel.config import ParallelConfig
from tapvideo.parallel.topology import build_topology

SIZE = {"frames": 9, "size": 32, "width": 96}  # 3 x 4 x 12 = 144 tokens
ODD = {"frames": 17, "size": 32, "width": 32}  # 5 x 4 x 4 = 80 tokens, which 3 does not divide
STEPS = 12
FULL = [0, 1, 2, 5, 8, 11]
RECOMPUTE = {"budget": 0.2, "threshold": 1e-4}


def run(image, recompute, size, heads=6):
    """Final latents and all choices."""
    topology = build_topology(ParallelConfig(), torch.device("cpu"))
    pipe = ltx.random_pipeline(image=image, num_attention_heads=heads, attention_head_dim=8)
    schedule = ScheduleConfig(kind="explicit", steps=FULL, warmup=1, min_steps=0)
    tap = enable_tap(pipe, TapConfig(schedule=schedule, recompute=RecomputeConfig(**recompute)), topology)
    extra = {"image": Image.new("RGB", (size["width"], size["size"]), (200, 40, 10))} if image else {}
    latents = ltx.denoise(pipe, steps=STEPS, **size, **extra)
    tap.gather_trace()
    choices = {r.step: r.choice for r in tap.trace.records if r.choice is not None}
    tap.disable()
    return latents, choices


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize(
    ("ranks", "exchange", "heads"),
    [(2, "ulysses", 6), (3, "ulysses", 6), (3, "auto", 4), (2, "allgather_q", 6), (3, "allgather_kv", 6)],
)
def test_ranks_make_what_one_makes(image, ranks, exchange, heads):
    recompute = {**RECOMPUTE, "exchange": exchange}
    latents, choices = run(image, recompute, SIZE, heads)
    found = run_ranks(ranks, run, image, recompute, SIZE, heads)
    assert set(choices) == set(range(STEPS)) - set(FULL)
    for others, other_choices in found:
        assert (others - latents).abs().max() <= 1e-5
        assert all(torch.equal(other_choices[step], choices[step]) for step in choices)
        assert torch.equal(others, found[0][0])  # bit for bit across ranks


@pytest.mark.parametrize("image", [False, True])
def test_tokens_that_ranks_do_not_divide(image):
    latents, _ = run(image, {}, ODD)
    assert all((others - latents).abs().max() <= 1e-5 for others, _ in run_ranks(3, run, image, {}, ODD))


@pytest.mark.parametrize(("ranks", "exchange"), [(2, "ulysses"), (3, "allgather_q")])
def test_recomputing_all_tokens_is_a_full_step(ranks, exchange):
    plain = ltx.random_pipeline(num_attention_heads=6, attention_head_dim=8)
    full = ltx.denoise(plain, steps=STEPS, **SIZE)
    found = run_ranks(ranks, run, False, {"budget": 1.0, "exchange": exchange}, SIZE)
    assert max((latents - full).abs().max() for latents, _ in found) <= 1e-5
