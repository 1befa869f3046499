"""Tokens of a first frame that is given stand at timestep 0, and have no say in a choice for all tokens."""

import pytest
import torch
from model_cases import CASES, denoise
from ranks import run_ranks

from tapvideo import ScheduleConfig, TapConfig, enable_tap
from tapvideo.models.calls import given_tokens
from tapvideo.parallel.attention import SequenceAttention
from tapvideo.parallel.comm import Comm
from tapvideo.parallel.config import ParallelConfig
from tapvideo.parallel.shard import TokenShard
from tapvideo.parallel.topology import build_topology

GRID = (3, 5, 7)
SCHEDULE = ScheduleConfig(kind="explicit", steps=[0, 1, 2, 5, 8, 11], warmup=1, min_steps=0)


def given_frame():
    given = torch.zeros(2, *GRID, dtype=torch.bool)
    given[:, 0] = True
    return given.flatten(1)


def errors():
    return torch.rand(2, 105, 4, generator=torch.Generator().manual_seed(0))


def shard_of(comm):
    shard = TokenShard(SequenceAttention(comm, full="ulysses", exchange="ulysses"), layout="diagonal")
    shard.enter(GRID, torch.device("cpu"))
    return shard


def test_the_mean_leaves_given_tokens_out():
    found = shard_of(Comm()).mean_over_tokens(errors(), given_frame())
    assert torch.allclose(found, errors()[:, 35:].mean(1, keepdim=True))


def mean_on_ranks():
    topology = build_topology(ParallelConfig(), torch.device("cpu"))
    shard = shard_of(topology.sp)
    return shard.mean_over_tokens(errors().index_select(1, shard.positions), given_frame())


def test_ranks_agree_on_that_mean():
    """On three ranks, which have different numbers of given tokens."""
    means = run_ranks(3, mean_on_ranks)
    assert all(torch.equal(mean, means[0]) for mean in means)
    assert torch.allclose(means[0], errors()[:, 35:].mean(1, keepdim=True))


@pytest.mark.parametrize(
    ("timestep", "expected"),
    [
        (torch.tensor([[0.0, 5.0, 5.0]]), [[True, False, False]]),
        (torch.tensor([[5.0, 5.0, 5.0]]), None),
        (torch.tensor([[0.0, 0.0, 0.0]]), None),  # the end of a run
        (torch.tensor([0.0]), None),
        (torch.tensor([[0.0, 5.0]]), None),  # not of these tokens
        (None, None),
    ],
)
def test_which_tokens_are_given(timestep, expected):
    found = given_tokens({"timestep": timestep}, 3)
    assert (None if found is None else found.tolist()) == expected


def run(parallel=None):
    case = next(case for case in CASES if case.name == "Wan 2.2 TI2V")
    transformer = case.transformer()
    config = TapConfig(schedule=SCHEDULE, choice="sample")
    enable_tap(transformer, config, build_topology(parallel or ParallelConfig(), torch.device("cpu")))
    return denoise(case, transformer)


def test_a_given_frame_is_known_to_the_stack(monkeypatch):
    seen = []
    real = TokenShard.mean_over_tokens
    monkeypatch.setattr(TokenShard, "mean_over_tokens", lambda *a: seen.append(a[2]) or real(*a))
    run()
    assert seen
    assert all(given[0].tolist() == given_frame()[0].tolist() for given in seen)


def test_two_ranks_make_one_ranks_clip_of_a_given_frame():
    expected = run()
    for latents in run_ranks(2, run):
        assert (latents - expected).abs().max() <= 1e-5
