"""P ranks make what one rank makes: latents, chosen predictors, recomputed tokens."""

import pytest
import torch
from ranks import run_ranks
from wan_random import denoise, random_pipeline

from tapvideo import ScheduleConfig, TapConfig, enable_tap
from tapvideo.config import RecomputeConfig
from tapvideo.parallel.config import ParallelConfig
from tapvideo.parallel.topology import build_topology

STEPS = 12
FULL = [0, 1, 2, 5, 8, 11]


def tap_config(**recompute):
    schedule = ScheduleConfig(kind="explicit", steps=FULL, warmup=1, min_steps=0)
    return TapConfig(schedule=schedule, recompute=RecomputeConfig(**recompute))


def run(config, parallel=None, *, dtype=torch.float32, heads=4):
    """Final latents, and every forecast step's choices in the order of the sequence, on this rank."""
    topology = build_topology(parallel or ParallelConfig(), torch.device("cpu"))
    pipe = random_pipeline(num_attention_heads=heads, attention_head_dim=12)
    if dtype is not torch.float32:
        pipe.transformer.to(dtype)
    tap = enable_tap(pipe, config, topology)
    latents = denoise(pipe, steps=STEPS, **SIZE)
    tap.gather_trace()
    choices = {(r.branch, r.step): r.choice for r in tap.trace.records if r.choice is not None}
    tap.disable()
    return latents, choices


SIZE = {"frames": 17, "size": 80, "width": 112}  # 5 x 5 x 7 = 175 tokens, which neither 2, 3 nor 4 divides
RECOMPUTE = {"budget": 0.2, "threshold": 1e-4}




@pytest.fixture(scope="module")
def one_rank():
    return run(tap_config(**RECOMPUTE))


def assert_same(found, expected, tolerance=1e-5):
    latents, choices = expected
    for others, other_choices in found:
        assert (others - latents).abs().max() <= tolerance
        assert other_choices.keys() == choices.keys()
        assert all(torch.equal(other_choices[key], choices[key]) for key in choices)


@pytest.mark.parametrize(
    ("ranks", "exchange"),
    [(2, "ulysses"), (4, "ulysses"), (3, "auto"), (2, "allgather_q"), (3, "allgather_kv"), (4, "allgather_q")],
)
def test_ranks_make_what_one_makes(one_rank, ranks, exchange):
    found = run_ranks(ranks, run, tap_config(**RECOMPUTE, exchange=exchange))
    assert_same(found, one_rank)
    assert all(torch.equal(latents, found[0][0]) for latents, _ in found)  # bit for bit across ranks
