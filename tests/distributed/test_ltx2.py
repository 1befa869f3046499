"""LTX-2 on several ranks: the sound is whole on each, the video's tokens are shared, and both are as one rank's."""

from dataclasses import replace

import ltx2_random
import pytest
import torch
from ranks import run_ranks

from tapvideo import ScheduleConfig, TapConfig, enable_tap
from tapvideo.config import RecomputeConfig
from tapvideo.parallel.attention import Rows, SequenceAttention
from tapvideo.parallel.config import ParallelConfig
from tapvideo.parallel.kept import KeepOptions, KeptKV
from tapvideo.parallel.spread import attend_to_spread
from tapvideo.parallel.topology import build_topology

HEADS, HEAD_DIM, LAYERS, STEPS = 6, 8, 3, 8  # heads of the sound
TAP = TapConfig(schedule=ScheduleConfig(kind="explicit", steps=[0, 1, 2, 5], warmup=1, min_steps=0))
RECOMPUTE = replace(TAP, recompute=RecomputeConfig(budget=0.2))


def run(config, parallel=None, newer=False):
    """Both outputs of every step, and the bytes of what ranks told each other of the sound's attention."""
    kind = ltx2_random.random_newer_transformer if newer else ltx2_random.random_transformer
    transformer = kind(heads=HEADS, num_layers=LAYERS)
    topology = build_topology(parallel or ParallelConfig(), torch.device("cpu"))
    enable_tap(transformer, config, topology)
    latents, made = ltx2_random.noise(transformer), []
    for step in range(STEPS):
        for branch in ("cond_uncond", "uncond_stg") if newer else ("cond_uncond",):
            call = ltx2_random.inputs(transformer, latents, 1000.0 - 100 * step, branch, cross=newer)
            context = transformer.cache_context(branch, step_index=step, num_inference_steps=STEPS)
            with torch.no_grad(), context:
                made.append(transformer(**call, return_dict=False))
        latents = latents - made[-1][0][:1] / STEPS
    return made, topology.ledger.by_kind()


def check(found, expected):
    for made, _ in found:
        for one, two, first in zip(made, expected, found[0][0], strict=True):
            for own, plain, other in zip(one, two, first, strict=True):
                assert (own - plain).abs().max() <= 1e-5
                assert torch.equal(own, other)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("newer", [False, True])
def test_both_streams_are_one_ranks(ranks, newer):
    expected, _ = run(RECOMPUTE, newer=newer)
    check(run_ranks(ranks, run, RECOMPUTE, None, newer), expected)


@pytest.mark.parametrize("exchange", ["allgather_q", "allgather_kv"])
def test_with_every_exchange(exchange):
    parallel = ParallelConfig(attention="allgather_kv")
    config = replace(TAP, recompute=RecomputeConfig(budget=0.2, exchange=exchange))
    expected, _ = run(config)
    check(run_ranks(2, run, config, parallel), expected)


@pytest.mark.parametrize("ranks", [2, 3])
def test_bytes_of_the_sounds_attention_are_the_formula(ranks):
    """4 (P - 1) m h (d + 1) a layer, batch and pass; a forecast step tells nothing of the sound."""
    one = 4 * (ranks - 1) * ltx2_random.AUDIO * HEADS * (HEAD_DIM + 1) * 2 * LAYERS
    for _, ledger in run_ranks(ranks, run, TAP):
        assert ledger["full"]["companion"].bytes == 4 * one
        assert set(ledger["forecast"]) == {"output"}
    for _, ledger in run_ranks(ranks, run, RECOMPUTE):
        assert ledger["recompute"]["companion"].bytes == 4 * one


def attended():
    """A full pass and one of two fresh rows, against attention written out over all keys with those in their place."""
    topology = build_topology(ParallelConfig(), torch.device("cpu"))
    comm = topology.sp
    attention = SequenceAttention(comm, full="allgather_kv", exchange="allgather_q")
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, n, 3, 4, generator=generator) for n in (5, 7, 7))
    fresh_key, fresh_value = torch.randn(2, 2, 2, 3, 4, generator=generator)
    shares = torch.arange(7).tensor_split(comm.size)
    own, counts = shares[comm.rank], tuple(len(share) for share in shares)
    stale = torch.tensor([1, 6])
    mine = torch.isin(stale, own)
    rows = Rows(tuple(int(torch.isin(stale, s).sum()) for s in shares), stale[mine] - own[0], stale)
    kept, made = KeptKV(KeepOptions()), []
    attention.begin(Rows(counts), kept)
    made.append(attend_to_spread(attention, 0, query, key[:, own], value[:, own], sdpa))
    attention.begin(rows, kept)
    made.append(attend_to_spread(attention, 0, query, fresh_key[:, mine], fresh_value[:, mine], sdpa))
    torch.testing.assert_close(made[0], sdpa(query, key, value), atol=1e-5, rtol=1e-5)
    key, value = key.index_copy(1, stale, fresh_key), value.index_copy(1, stale, fresh_value)
    torch.testing.assert_close(made[1], sdpa(query, key, value), atol=1e-5, rtol=1e-5)
    return made


def sdpa(query, key, value):
    score = torch.einsum("bnhd,bmhd->bhnm", query.double(), key.double()) / query.shape[-1] ** 0.5
    return torch.einsum("bhnm,bmhd->bnhd", score.softmax(-1), value.double()).float()


def test_attention_to_spread_keys_sees_what_is_kept():
    attended()
    for ranks in (2, 3):
        found = run_ranks(ranks, attended)
        assert all(torch.equal(a, b) for made in found for a, b in zip(made, found[0], strict=True))
