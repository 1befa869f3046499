"""The equality tests see what they are there to see: each mutation moves the outputs far beyond their tolerance."""

from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from ranks import run_ranks
from wan_random import random_transformer

from tapvideo import ScheduleConfig, TapConfig, enable_tap
from tapvideo.config import RecomputeConfig
from tapvideo.models.hook import NamedState
from tapvideo.parallel import attention, shard
from tapvideo.parallel.config import ParallelConfig
from tapvideo.parallel.kept import Stored
from tapvideo.parallel.topology import build_topology

SHARED = NamedState(3)


@contextmanager
def stale_kv():
    """Fresh keys and values are not written back."""
    with mock.patch.object(Stored, "update"):
        yield


@contextmanager
def wrong_order():
    """Gathered rows are taken to be in order."""
    with mock.patch.object(shard.Layout, "in_order", lambda self, rows: rows):
        yield


@contextmanager
def shared_branches():
    """Both guidance branches push into one history."""
    with mock.patch.object(NamedState, "enter", return_value=SHARED.branch):
        yield


@contextmanager
def merged_by_mean():
    """Partial attentions are averaged, whatever weight their keys have."""
    with mock.patch.object(attention, "merge_parts", lambda outputs, totals: outputs.mean(0)):
        yield


@contextmanager
def nothing():
    """No mutation."""
    yield


@torch.no_grad()
def outputs(mutation, exchange):
    """Of both branches, three full passes and three forecast ones with recomputed tokens."""
    transformer = random_transformer(num_attention_heads=4, attention_head_dim=12)
    schedule = ScheduleConfig(kind="explicit", steps=[0, 1, 2], warmup=1, min_steps=0)
    config = TapConfig(schedule=schedule, recompute=RecomputeConfig(budget=0.3, exchange=exchange))
    enable_tap(transformer, config, build_topology(ParallelConfig(), torch.device("cpu")))
    generator = torch.Generator().manual_seed(3)
    latents, drift = torch.randn(2, 1, 4, 5, 10, 14, generator=generator)
    texts = torch.randn(2, 1, 6, 8, generator=generator)
    found = []
    with mutation():
        for step in range(6):
            for name, text in zip(("cond", "uncond"), texts, strict=True):
                with transformer.cache_context(name, step_index=step, sigma=1 - step / 12, num_inference_steps=12):
                    timestep = torch.tensor([900 - 50 * step])
                    found.append(transformer(latents + 0.3 * step * drift, timestep, text, return_dict=False)[0])
    return torch.stack(found)


@pytest.mark.parametrize(
    ("mutation", "exchange"), [(stale_kv, "ulysses"), (wrong_order, "ulysses"), (merged_by_mean, "allgather_q")]
)
def test_mutation_is_seen(mutation, exchange):
    expected = outputs(nothing, exchange)
    assert all((found - expected).abs().max() <= 1e-5 for found in run_ranks(2, outputs, nothing, exchange))
    assert all((found - expected).abs().max() >= 1e-4 for found in run_ranks(2, outputs, mutation, exchange))


def test_branches_that_share_a_history_fail_at_once():
    with pytest.raises(AssertionError, match="two anchors at the same coordinate"):
        run_ranks(2, outputs, shared_branches, "ulysses")
