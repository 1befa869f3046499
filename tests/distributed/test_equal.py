"""P ranks make what one rank makes: latents, chosen predictors, recomputed tokens."""

from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from torch.distributed.device_mesh import init_device_mesh
from wan_random import denoise, random_pipeline, random_transformer

from tapvideo import ScheduleConfig, TapConfig, enable_tap
from tapvideo.config import RecomputeConfig
from tapvideo.parallel.config import ParallelConfig
from tapvideo.parallel.topology import build_topology

STEPS = 12
FULL = [0, 1, 2, 5, 8, 11]


def tap_config(**recompute):
    schedule = ScheduleConfig(kind="explicit", steps=FULL, warmup=1, min_steps=0)
    return TapConfig(schedule=schedule, recompute=RecomputeConfig(**recompute))


def run(config, parallel=None, dtype=torch.float32, heads=4):
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


def test_recompute_takes_part_in_these_runs(one_rank):
    latents, choices = one_rank
    assert {step for _, step in choices} == set(range(STEPS)) - set(FULL)
    assert (latents - run(tap_config())[0]).abs().max() > 1e-3


@pytest.mark.parametrize(("ranks", "exchange"), [(1, "auto"), (2, "ulysses"), (3, "allgather_q"), (3, "allgather_kv")])
def test_recomputing_all_tokens_is_a_full_step(ranks, exchange):
    full, _ = run(TapConfig(enabled=False))
    found = run_ranks(ranks, run, tap_config(budget=1.0, exchange=exchange))
    assert max((latents - full).abs().max() for latents, _ in found) <= 1e-5


@pytest.mark.parametrize("layout", ["strided", "contiguous"])
def test_layout_does_not_matter(one_rank, layout):
    assert_same(run_ranks(2, run, tap_config(**RECOMPUTE), ParallelConfig(layout=layout)), one_rank)


@pytest.mark.parametrize(
    "changes", [{"choice": "sample"}, {"probe": "block_output"}, {"proxy": "l2"}, {"enabled": False}]
)
def test_ranks_agree_under_every_way_of_choosing(changes):
    config = replace(tap_config(), **changes)
    assert_same(run_ranks(3, run, config), run(config))


@pytest.mark.parametrize(("ranks", "parallel"), [(2, {"cfg": 2}), (4, {"cfg": 2, "sp": 2})])
def test_guidance_halves_make_what_one_rank_makes(one_rank, ranks, parallel):
    latents, choices = one_rank
    for rank, (others, other_choices) in enumerate(
        run_ranks(ranks, run, tap_config(**RECOMPUTE), ParallelConfig(**parallel))
    ):
        branch = "cond" if rank < ranks // 2 else "uncond"
        assert (others - latents).abs().max() <= 1e-5
        assert {key[0] for key in other_choices} == {branch}
        assert all(torch.equal(choice, choices[key]) for key, choice in other_choices.items())


def test_data_parallel_groups_do_not_talk(one_rank):
    assert_same(run_ranks(4, run, tap_config(**RECOMPUTE), ParallelConfig(dp=2)), one_rank)


def passes(exchange, dtype):
    """Outputs of three full passes and two forecast ones with recomputed tokens, of a bare transformer."""
    transformer = random_transformer(num_attention_heads=4, attention_head_dim=12).to(dtype)
    config = tap_config(budget=0.25, exchange=exchange)
    enable_tap(transformer, config, build_topology(ParallelConfig(), torch.device("cpu")))
    generator = torch.Generator().manual_seed(3)
    latents, drift = torch.randn(2, 2, 4, 5, 10, 14, generator=generator)
    text = torch.randn(2, 6, 8, generator=generator).to(dtype)
    outputs = []
    for step in range(5):
        with transformer.cache_context("cond", step_index=step, sigma=1 - step / 12, num_inference_steps=12):
            timestep = torch.full((2,), 900 - 50 * step)
            outputs.append(transformer((latents + 0.1 * step * drift).to(dtype), timestep, text, return_dict=False)[0])
    return torch.stack(outputs).float()


@pytest.mark.parametrize(
    ("ranks", "exchange"), [(2, "ulysses"), (4, "ulysses"), (3, "allgather_q"), (3, "allgather_kv")]
)
@torch.no_grad()
def test_half_precision_differs_by_rounding_only(ranks, exchange):
    expected = passes(exchange, torch.bfloat16)
    two_units = expected.abs().max() * 2 * torch.finfo(torch.bfloat16).eps
    found = run_ranks(ranks, without_grad, passes, exchange, torch.bfloat16)
    assert all((outputs - expected).abs().max() <= two_units for outputs in found)


def without_grad(function, *args):
    with torch.no_grad():
        return function(*args)


def axes(parallel):
    """Ranks of this rank's group on every axis, as made here and as DeviceMesh has them, and the groups' timeouts."""
    topology = build_topology(parallel, torch.device("cpu"))
    sizes = [getattr(topology, name).size for name in ("dp", "cfg", "sp")]
    mesh = init_device_mesh("cpu", sizes, mesh_dim_names=("dp", "cfg", "sp"))
    groups = {name: getattr(topology, name).group for name in ("dp", "cfg", "sp")}
    made = {name: dist.get_process_group_ranks(group) for name, group in groups.items() if group}
    expected = {name: dist.get_process_group_ranks(mesh.get_group(name)) for name in made}
    return (
        made,
        expected,
        [group._get_backend(torch.device("cpu")).options._timeout for group in groups.values() if group],
    )


@pytest.mark.parametrize("sizes", [{"dp": 2, "cfg": 2}, {"cfg": 2, "sp": 2}, {"dp": 2, "sp": 2}, {"sp": 4}])
def test_axes_are_those_of_a_device_mesh_and_know_the_timeout(sizes):
    for made, expected, timeouts in run_ranks(4, axes, ParallelConfig(**sizes, timeout=77)):
        assert made == expected
        assert set(timeouts) <= {timedelta(seconds=77), timedelta(days=7)}  # other clips take as long as they take
        assert len(timeouts) - timeouts.count(timedelta(seconds=77)) == ("dp" in made)


@torch.no_grad()
def counted_steps(parallel):
    """Predictions of a pipeline that names its branches and does not tell its steps, as image-to-video Wan."""
    transformer = random_transformer(num_attention_heads=4, attention_head_dim=12)
    pipe = SimpleNamespace(transformer=transformer, scheduler=SimpleNamespace(timesteps=list(range(6))))
    schedule = ScheduleConfig(kind="explicit", steps=[0, 1, 4], warmup=1, min_steps=0)
    enable_tap(pipe, TapConfig(schedule=schedule), build_topology(parallel, torch.device("cpu")))
    generator = torch.Generator().manual_seed(3)
    latents, drift = torch.randn(2, 1, 4, 5, 10, 14, generator=generator)
    texts = torch.randn(2, 1, 6, 8, generator=generator)
    combined = []
    for step in range(6):
        branches = []
        for name, text in zip(("cond", "uncond"), texts, strict=True):
            with transformer.cache_context(name):
                timestep = torch.tensor([900 - 50 * step])
                branches.append(transformer(latents + 0.1 * step * drift, timestep, text, return_dict=False)[0])
        combined.append(branches[1] + 5 * (branches[0] - branches[1]))
    return torch.stack(combined)


@pytest.mark.parametrize(("ranks", "parallel"), [(2, {"cfg": 2}), (2, {"sp": 2}), (4, {"cfg": 2, "sp": 2})])
def test_steps_that_are_not_told_are_counted_alike(ranks, parallel):
    expected = counted_steps(ParallelConfig())
    found = run_ranks(ranks, counted_steps, ParallelConfig(**parallel))
    assert all((predictions - expected).abs().max() <= 1e-4 for predictions in found)
