"""Every method runs on a tiny random model, costs what torch counts, and leaves nothing behind."""

from contextlib import ExitStack
from dataclasses import asdict

import pytest
import torch
from diffusers.hooks import HookRegistry

from tapvideo.calibration import load_calibration
from tapvideo.calibration.file import calibrate
from tapvideo.calibration.find import own_folder
from tapvideo.compare.clips import PLAIN
from tapvideo.compare.config import CompareConfig
from tapvideo.compare.flops import count_flops, counting, first_call, flop_counter
from tapvideo.compare.methods import Bench
from tapvideo.compare.own import intervals
from tapvideo.compare.runner import all_methods
from tapvideo.compare.tuning import land
from tapvideo.config import GenerateConfig
from tapvideo.planning import make_plan
from tapvideo.resolve import run_kind
from tapvideo.schedule import StepKind, spread_plan

STEPS = 12
SMALL = {"frames": 5, "size": 16}
METHODS = all_methods(CompareConfig())
CANNOT = {"diffusers-fastercache": IndexError}  # it splits a batch of both guidance branches, and Wan calls each alone
FIXED = {"diffusers-magcache": {"mag_ratios": [1.0] * STEPS}, "rule-teacache": {"polynomial": [0.0, 0, 0, 1, 0]}}


@pytest.fixture
def bench(wan):
    return make_bench(wan, SMALL)


@pytest.fixture(autouse=True)
def calibration(tmp_path, monkeypatch):
    """One that fits, of random residuals."""
    monkeypatch.setenv("TAPVIDEO_HOME", str(tmp_path))
    kind = run_kind(GenerateConfig(steps=STEPS))
    residuals = torch.randn(2 * STEPS, 64, generator=torch.Generator().manual_seed(0)).double().cumsum(0)
    flat, mix = torch.ones(STEPS, dtype=torch.float64), torch.tensor([[6.0, -5.0]], dtype=torch.float64)
    made = calibrate(["cond", "uncond"], residuals @ residuals.T, mix, flat, asdict(kind))
    made.save(own_folder() / "random.safetensors")


def make_bench(wan, shape):
    pipe = wan.random_pipeline(num_layers=3)
    with first_call(pipe.transformer) as captured:
        wan.denoise(pipe, steps=2, **shape)
    assert captured.calls == 4
    ledger = count_flops(pipe.transformer, captured.args, captured.kwargs)
    return Bench(pipe, GenerateConfig(steps=STEPS), ledger, branches=2)


def settings_of(bench, key, target=6.0):
    variant = METHODS[key].variants(bench, target)[-1]
    knob = variant.knob
    value = knob.values[len(knob.values) // 4] if knob.values else knob.high / 10
    return {**variant.settings, **FIXED.get(key, {}), knob.name: value}


def run(wan, bench, method, settings, *contexts, shape=SMALL):
    with ExitStack() as stack:
        stack.enter_context(counting(bench.pipe.transformer, bench.ledger))
        config = stack.enter_context(method.apply(bench, settings))
        bench.ledger.clear()
        entered = [stack.enter_context(context) for context in contexts]
        return wan.denoise(bench.pipe, steps=config.steps, **shape), entered


def test_ledger_counts_plain_steps(wan, bench):
    run(wan, bench, PLAIN, {})
    assert bench.ledger.full_passes(2) == pytest.approx(STEPS, rel=1e-9)
    assert sum(bench.ledger.costs.values()) == pytest.approx(bench.ledger.per_call)
    assert bench.ledger.runs["blocks.2.ffn"] == 2 * STEPS


def test_a_linear_layer_costs_two_flops_a_weight_and_token():
    linear = torch.nn.Sequential(torch.nn.Linear(3, 5))
    assert count_flops(linear, (torch.zeros(7, 3),), {}).per_call == 2 * 7 * 3 * 5


@pytest.mark.parametrize("key", [key for key in METHODS if key not in CANNOT])
def test_method_leaves_nothing_behind_and_costs_what_torch_counts(wan, bench, key):
    if key.startswith("cache-dit"):
        pytest.importorskip("cache_dit")
    plain = wan.denoise(bench.pipe, steps=STEPS, **SMALL)
    call, scheduler = type(bench.pipe).__call__, bench.pipe.scheduler
    settings = settings_of(bench, key)
    made, (counter,) = run(wan, bench, METHODS[key], settings, flop_counter())
    passes = bench.ledger.full_passes(2)
    assert torch.isfinite(made).all()
    assert not torch.equal(made, plain)
    counted = counter.get_flop_counts()["WanTransformer3DModel"]
    assert passes * 2 == pytest.approx(sum(counted.values()) / bench.ledger.per_call, rel=0.02)
    again, _ = run(wan, bench, METHODS[key], settings)
    assert torch.equal(again, made)  # nothing is left of the clip before
    assert torch.equal(wan.denoise(bench.pipe, steps=STEPS, **SMALL), plain)
    assert type(bench.pipe).__call__ is call
    assert bench.pipe.scheduler is scheduler
    registries = [m._diffusers_hook for m in bench.pipe.transformer.modules() if hasattr(m, "_diffusers_hook")]
    assert all(not registry.hooks for registry in registries)


@pytest.mark.parametrize("key", CANNOT)
def test_method_that_cannot_run_raises_and_leaves_nothing_behind(wan, bench, key):
    plain = wan.denoise(bench.pipe, steps=STEPS, **SMALL)
    with pytest.raises(CANNOT[key]):
        run(wan, bench, METHODS[key], settings_of(bench, key))
    assert torch.equal(wan.denoise(bench.pipe, steps=STEPS, **SMALL), plain)
    assert not HookRegistry.check_if_exists_or_initialize(bench.pipe.transformer).hooks


@pytest.mark.parametrize("key", ["tap-default", "tap-calibrated", "tap-paper-calibrated", "tap-paper-spread"])
def test_full_steps_lie_where_the_schedule_says(wan, bench, key):
    settings = settings_of(bench, key) | {"full_steps": 6}
    (path,) = own_folder().iterdir()
    spread = [step for step, kind in enumerate(spread_plan(STEPS, count=6)) if kind is StepKind.FULL]
    calibrated = load_calibration(path).best_steps(6)
    assert spread != calibrated
    with METHODS[key].apply(bench, settings) as config:
        plan = make_plan(config.tap_config, STEPS)
    full = [step for step, kind in enumerate(plan) if kind is StepKind.FULL]
    assert full == (spread if key.endswith("spread") else calibrated)


PREDICTED = [k for k in METHODS if k.startswith(("tap-", "steps-", "diffusers-taylorseer")) and "recompute" not in k]


@pytest.mark.parametrize("key", PREDICTED)
def test_prediction_is_what_a_run_takes(wan, bench, key):
    for variant in METHODS[key].variants(bench, 6.0):
        found = land(variant, 6.0, 0.05, lambda settings: pytest.fail("predicted"))
        run(wan, bench, METHODS[key], found.settings)
        assert bench.ledger.full_passes(2) == pytest.approx(found.full_passes, rel=1e-6)


def test_recomputed_tokens_count_for_what_they_cost(wan):
    """Rows cost their share in every linear layer and in attention; keys and values of text cost all of it."""
    shape = {"frames": 5, "size": 80}  # 50 tokens
    bench = make_bench(wan, shape)
    schedule = {"warmup": 3, "interval": 4, "last": 1}
    variant = METHODS["tap-recompute"].variants(bench, 6.0)[0].settings | schedule
    run(wan, bench, METHODS["tap-paper"], variant, shape=shape)
    full = bench.ledger.runs["blocks.0.ffn"] // 2
    without = bench.ledger.full_passes(2)
    _, (counter,) = run(wan, bench, METHODS["tap-recompute"], variant, flop_counter(), shape=shape)
    assert bench.ledger.runs["blocks.0.ffn"] == 2 * STEPS
    per_step = (bench.ledger.full_passes(2) - without) / (STEPS - full)
    ffn = bench.ledger.costs["blocks.0.ffn"]
    assert [cost for (part, _), cost in bench.ledger.known.items() if part == "blocks.0.ffn"] == [ffn, 0.1 * ffn]
    assert 0.1 * bench.ledger.share("blocks") < per_step < 0.2 * bench.ledger.share("blocks")
    counted = sum(counter.get_flop_counts()["WanTransformer3DModel"].values())
    assert bench.ledger.flops == pytest.approx(counted, rel=0.02)


def test_distances_that_meet_a_target_leave_room_for_recomputed_tokens():
    assert intervals(50, 10.0) == [5, 6, 7]
    assert intervals(50, 10.0, 0.1) == [9, 10, 11]  # (10 - 5) / 0.9 full steps
    assert intervals(50, 10.0, 0.2) == [50, 51, 52]  # what is recomputed is the whole budget


@pytest.mark.parametrize("key", ["rule-teacache", "rule-easycache", "diffusers-magcache"])
def test_calibration_fits_on_plain_runs(wan, bench, key):
    method = METHODS[key]
    if method.calibrate is None:
        pytest.skip("nothing to fit")
    plain = wan.denoise(bench.pipe, steps=STEPS, **SMALL)
    runs = []
    fitted = method.calibrate(bench, lambda: runs.append(wan.denoise(bench.pipe, steps=STEPS, **SMALL)))
    assert torch.equal(runs[0], plain)
    (values,) = fitted.values()
    assert len(values) == (STEPS if key == "diffusers-magcache" else 5)


@pytest.mark.parametrize("key", ["rule-teacache", "rule-easycache"])
def test_rule_runs_every_step_at_no_threshold_and_few_at_a_high_one(wan, bench, key):
    plain = wan.denoise(bench.pipe, steps=STEPS, **SMALL)
    settings = settings_of(bench, key) | {"warmup": 3}
    made, _ = run(wan, bench, METHODS[key], settings | {"threshold": 0.0})
    assert torch.equal(made, plain)
    run(wan, bench, METHODS[key], settings | {"threshold": 1e9})
    assert bench.ledger.runs["blocks.0.ffn"] == 2 * (3 + 1)  # warm-up and the last step
