"""Token recompute on one rank: who is stale, what layers keep, and what comes of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tapvideo import ScheduleConfig, TapConfig, enable_tap
from tapvideo.config import ConfigError, RecomputeConfig
from tapvideo.memory import check_room, kept_on_this_rank
from tapvideo.models.wan_attention import WanSequenceProcessor
from tapvideo.parallel.kept import KeepOptions, KeptKV, Stored, kept_bytes
from tapvideo.parallel.lse import attention_part, merge_parts
from tapvideo.parallel.topology import alone
from tapvideo.recompute import stale_tokens

FULL = [0, 1, 2, 6, 10, 15]
EXPLICIT = ScheduleConfig(kind="explicit", steps=FULL, warmup=1, min_steps=0)


def with_recompute(**changes):
    return TapConfig(schedule=EXPLICIT, recompute=RecomputeConfig(**changes))


def test_stale_tokens_reach_the_threshold():
    error = torch.tensor([0.1, 0.5, 0.3, 0.5, 0.0])
    assert stale_tokens(error, threshold=0.3, budget=1.0).tolist() == [1, 2, 3]
    assert stale_tokens(error, threshold=0.6, budget=1.0).tolist() == []
    assert stale_tokens(error, threshold=0.0, budget=1.0).tolist() == [0, 1, 2, 3, 4]


def test_budget_takes_the_worst_and_of_equals_the_first():
    error = torch.tensor([0.1, 0.5, 0.3, 0.5, 0.5])
    assert stale_tokens(error, threshold=0.0, budget=0.4).tolist() == [1, 3]
    assert stale_tokens(error, threshold=0.0, budget=0.8).tolist() == [1, 2, 3, 4]
    assert stale_tokens(error, threshold=0.0, budget=0.19).tolist() == []
    assert stale_tokens(torch.zeros(10), threshold=0.0, budget=0.3).tolist() == [0, 1, 2]  # 0.3 * 10 is 3, not 2.99..


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_merged_parts_are_the_whole_attention(parts):
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 5, 3, 8), torch.randn(2, 7, 3, 8) * 4, torch.randn(2, 7, 3, 8)
    whole = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value)))
    found = [
        attention_part(query, k, v)
        for k, v in zip(key.tensor_split(parts, 1), value.tensor_split(parts, 1), strict=True)
    ]
    found.append(attention_part(query, key[:, :0], value[:, :0]))  # a rank without keys has no say
    merged = merge_parts(*(torch.stack(x) for x in zip(*found, strict=True)))
    assert torch.allclose(merged, whole.transpose(1, 2), atol=1e-6)


def test_fp8_keeps_three_bits_of_every_number():
    torch.manual_seed(0)
    value = torch.randn(2, 6, 3, 16) * torch.logspace(-3, 3, 6).view(1, 6, 1, 1)
    stored = Stored.of(value, KeepOptions("fp8"))
    loaded = stored.load(value.device, value.dtype)
    largest = value.abs().amax(-1, keepdim=True)
    assert ((loaded - value).abs() <= value.abs() / 16 + largest / 448 / 2 + 1e-7).all()  # 3 bits of mantissa, e4m3
    assert stored.num_bytes == kept_bytes(value.numel(), 16, dtype=torch.float32, kv_dtype="fp8")


@pytest.mark.parametrize("kv_dtype", ["model", "fp8"])
@pytest.mark.parametrize("offload", [False, True])
def test_fresh_rows_overwrite_their_slots_only(kv_dtype, offload):
    torch.manual_seed(0)
    kept, old, fresh = KeptKV(KeepOptions(kv_dtype, None, offload)), torch.randn(1, 6, 2, 16), torch.randn(1, 2, 2, 16)
    kept.put(0, old, -old)
    before = [s.load(old.device, old.dtype) for s in kept.layers[0]]
    slots = torch.tensor([1, 4])
    for found, was, new in zip(kept.merge(0, slots, fresh, -fresh), before, (fresh, -fresh), strict=True):
        assert torch.equal(found[:, slots], new)
        rest = [0, 2, 3, 5]
        assert torch.equal(found[:, rest], was[:, rest])
    again, _ = kept.merge(0, torch.tensor([0]), old[:, :1], old[:, :1])
    tolerance = {} if kv_dtype == "model" else {"rtol": 1 / 15, "atol": 2e-2}
    torch.testing.assert_close(again[:, slots], fresh, **tolerance or {"rtol": 0, "atol": 0})


def test_layers_that_keep_nothing_attend_to_what_is_fresh():
    kept, fresh = KeptKV(KeepOptions(layers=frozenset({1}))), torch.randn(1, 2, 2, 4)
    kept.put(0, fresh, fresh)
    assert kept.num_bytes == 0
    assert kept.merge(0, torch.tensor([3, 4]), fresh, fresh)[0] is fresh


@pytest.mark.parametrize("changes", [{}, {"kv_offload": True}])
def test_recomputing_every_token_is_a_full_step(pipe, wan, changes):
    plain = wan.denoise(pipe)
    tap = enable_tap(pipe, with_recompute(budget=1.0, **changes))
    assert (wan.denoise(pipe) - plain).abs().max() <= 1e-5
    assert tap.summary().forecast_steps == sorted(set(range(16)) - set(FULL))


def test_recompute_brings_the_forecast_nearer(pipe, wan):
    plain, distances = wan.denoise(pipe), []
    for budget in (0.0, 0.25, 0.75):
        tap = enable_tap(pipe, with_recompute(budget=budget))
        distances.append((wan.denoise(pipe) - plain).norm().item())
        tap.disable()
    assert distances == sorted(distances, reverse=True)


@pytest.mark.parametrize("changes", [{"kv_dtype": "fp8"}, {"kv_layers": [0, 2]}])
def test_smaller_caches_cost_little(pipe, wan, changes):
    plain, distances = wan.denoise(pipe), {}
    for name, extra in (("whole", {}), ("small", changes)):
        tap = enable_tap(pipe, with_recompute(budget=0.5, **extra))
        distances[name] = (wan.denoise(pipe) - plain).norm().item()
        tap.disable()
    assert distances["small"] < 2 * distances["whole"]


@pytest.mark.parametrize("family", ["reuse", "taylor"])
def test_one_candidate_can_say_what_is_stale(pipe, wan, family):
    orders = [0] if family == "reuse" else [1]
    config = TapConfig(
        family=family, orders=orders, lookback=0, schedule=EXPLICIT, recompute=RecomputeConfig(budget=0.25)
    )
    tap = enable_tap(pipe, config)
    wan.denoise(pipe)
    assert tap.trace.shares(3)["recomputed"] == pytest.approx(0.25, abs=0.05)


def test_interval_one_stays_plain_and_disable_restores_processors(pipe, wan):
    plain = wan.denoise(pipe)
    before = [block.attn1.processor for block in pipe.transformer.blocks]
    tap = enable_tap(pipe, TapConfig(schedule=ScheduleConfig(interval=1), recompute=RecomputeConfig(budget=0.5)))
    assert isinstance(pipe.transformer.blocks[0].attn1.processor, WanSequenceProcessor)
    assert torch.equal(wan.denoise(pipe), plain)
    tap.disable()
    assert [block.attn1.processor for block in pipe.transformer.blocks] == before
    assert torch.equal(wan.denoise(pipe), plain)


COMPILED = """
import torch, wan_random
from tapvideo import ScheduleConfig, TapConfig, enable_tap
from tapvideo.config import RecomputeConfig
pipe = wan_random.random_pipeline()
schedule = ScheduleConfig(kind="explicit", steps=[0, 1, 2, 6, 10, 15], warmup=1, min_steps=0)
config = TapConfig(schedule=schedule, recompute=RecomputeConfig(budget=0.25))
tap = enable_tap(pipe, config)
eager = wan_random.denoise(pipe)
tap.disable()
pipe.transformer.compile_repeated_blocks(backend="eager")
enable_tap(pipe, config)
print((wan_random.denoise(pipe) - eager).abs().max().item())
"""


def test_compiled_blocks_recompute_alike():
    """In a process of its own: the type checks that tests put around functions are not for dynamo's eyes."""
    tests = Path(__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests / "support")])}
    done = subprocess.run([sys.executable, "-c", COMPILED], env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= 1e-5
    assert "recompile_limit" not in done.stderr


def test_without_recompute_processors_are_left_alone(pipe):
    before = [block.attn1.processor for block in pipe.transformer.blocks]
    enable_tap(pipe, TapConfig())
    assert [block.attn1.processor for block in pipe.transformer.blocks] == before


def test_kept_bytes_are_known_before_the_run(pipe, wan):
    config = with_recompute(budget=0.25)
    promised = kept_on_this_rank(pipe.transformer, config, alone(), latent_size=(3, 4, 4), num_steps=16, branches=2)
    tap = enable_tap(pipe, config)
    wan.denoise(pipe)
    assert (tap.summary().state_bytes, tap.summary().kv_bytes) == (promised.anchors, promised.kv)
    assert "keys and values" in str(promised)


def test_kept_keys_and_values_are_gone_when_no_forecast_is_left(pipe, wan):
    enable_tap(pipe, with_recompute(budget=0.25))
    held = []

    def look(pipe, step, timestep, tensors):
        registry = pipe.transformer._diffusers_hook
        states = registry.get_hook("tapvideo").states._state_cache.values()
        held.append(sum(state.branch.kept.num_bytes for state in states if state.branch.kept))
        return {}

    wan.denoise(pipe, callback_on_step_end=look)
    assert held[3] > 0
    assert held[-1] == 0


def test_what_does_not_fit_is_refused_with_the_number(pipe, monkeypatch):
    config = with_recompute(budget=0.25)
    kept = kept_on_this_rank(pipe.transformer, config, alone(), latent_size=(3, 4, 4), num_steps=16, branches=2)
    check_room(kept, config, torch.device("cpu"))
    for free, named in (
        (kept.anchors + kept.kv - 1, r"tap.recompute.budget=0.25 keeps .* GiB .* allowed: .*kv_dtype=fp8"),
        (kept.anchors - 1, r"tap.anchors=3 of a video of this size keep .* GiB .* allowed: .* smaller height"),
    ):
        monkeypatch.setattr("psutil.virtual_memory", lambda free=free: type("Memory", (), {"available": free})())
        with pytest.raises(ConfigError, match=named):
            check_room(kept, config, torch.device("cpu"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"budget": 1.5}, "tap.recompute.budget=1.5"),
        ({"budget": -0.1}, "tap.recompute.budget=-0.1"),
        ({"threshold": float("nan")}, "tap.recompute.threshold=nan"),
        ({"exchange": "mail"}, "tap.recompute.exchange='mail'"),
        ({"kv_dtype": "int4"}, "tap.recompute.kv_dtype='int4'"),
        ({"kv_layers": [-1]}, "tap.recompute.kv_layers"),
    ],
)
def test_bad_values_are_named(changes, named):
    with pytest.raises(ConfigError, match=named):
        RecomputeConfig(**changes)


def test_layers_that_the_model_has_not_are_refused(pipe):
    with pytest.raises(ConfigError, match=r"kv_layers=\[7\] of 3 blocks; allowed: 0 to 2"):
        enable_tap(pipe, with_recompute(budget=0.5, kv_layers=[7]))


def test_foreign_attention_is_refused_and_nothing_stays_behind(pipe, wan):
    class Foreign:
        pass

    plain = wan.denoise(pipe)
    original = pipe.transformer.blocks[1].attn1.processor
    pipe.transformer.blocks[1].attn1.processor = Foreign()
    with pytest.raises(ValueError, match="self-attention is a Foreign"):
        enable_tap(pipe, with_recompute(budget=0.5))
    pipe.transformer.blocks[1].attn1.processor = original
    assert torch.equal(wan.denoise(pipe), plain)


def test_attention_backends_reach_our_processor(pipe):
    tap = enable_tap(pipe, with_recompute(budget=0.5))
    pipe.transformer.set_attention_backend("_native_math")
    assert pipe.transformer.blocks[0].attn1.processor.original._attention_backend == "_native_math"
    pipe.transformer.reset_attention_backend()
    tap.disable()
    assert pipe.transformer.blocks[0].attn1.processor._attention_backend is None


def test_ranks_of_one_machine_share_its_memory(pipe, monkeypatch):
    config = with_recompute(budget=0.25)
    kept = kept_on_this_rank(pipe.transformer, config, alone(), latent_size=(3, 4, 4), num_steps=16, branches=2)
    enough = type("Memory", (), {"available": 2 * (kept.kv + kept.anchors)})()
    monkeypatch.setattr("psutil.virtual_memory", lambda: enough)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    check_room(kept, config, torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="are free"):
        check_room(kept, config, torch.device("cpu"))
