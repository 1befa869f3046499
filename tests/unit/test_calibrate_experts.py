"""Calibrations of two experts: plans within each, weights of each's own anchors, one made and used from end to end."""

from dataclasses import asdict, replace

import pytest
import torch
from calibrations import made_up
from hydra import compose, initialize_config_dir
from safetensors.torch import save_file

from tapvideo import ScheduleConfig, TapConfig, calibrate, enable_tap
from tapvideo.calibrate import CalibrateConfig
from tapvideo.calibration import load_calibration
from tapvideo.calibration.file import FORMAT
from tapvideo.calibration.find import RunKind
from tapvideo.calibration.nodes import best_plans, gap_costs, longest_gap, run_plans
from tapvideo.calibration.weights import fit
from tapvideo.config import ConfigError, config_dir, from_hydra
from tapvideo.pipeline import accelerated, load_pipeline
from tapvideo.rehearsal import _error_at, _probed, _through, candidates
from tapvideo.resolve import run_kind
from tapvideo.sample import sample
from tapvideo.schedule import StepKind
from tapvideo.schedulers import experts, plan_steps

STEPS, START = 14, 5
CALIBRATE = [
    "model=wan22", "dtype=float32", "height=32", "width=32", "prompt='a red circle'", "seeds=[3]", "verbose=false",
    "probes=3", "probe_clips=1", "rehearsal_clips=1", "speedups=[2.0]", "max_sequence_length=24",
]  # fmt: skip


def full_of(plan):
    return plan.nonzero()[:, 0].tolist()


@pytest.fixture
def two():
    """A calibration of two experts, whose guidance differs."""
    made = made_up(steps=STEPS, starts=(0, START))
    return replace(made, mix=torch.tensor([[5.0, -4.0], [3.0, -2.0]], dtype=torch.float64))


@pytest.fixture
def asked_of_two(saved, tmp_path, monkeypatch):
    """What calibrates Wan 2.2's tiny stand-in."""
    monkeypatch.setenv("TAPVIDEO_HOME", str(tmp_path / "home"))

    def compose_config(*overrides):
        own = [*CALIBRATE, f"model.weights={saved('wan22')}", f"steps={STEPS}", "num_frames=9", *overrides]
        with initialize_config_dir(str(config_dir().resolve()), version_base="1.3"):
            return from_hydra(CalibrateConfig, compose("calibrate", own))

    return compose_config


def test_plans_are_divided_at_the_least_cost(two):
    """As every division of every number of full steps, tried one by one on plans of either stretch alone."""
    parts = []
    for mix, own in ((two.mix[0], range(START)), (two.mix[1], range(START, STEPS))):
        rows = torch.tensor([b * STEPS + step for b in range(2) for step in own])
        costs = gap_costs(two.gram[rows][:, rows], mix, two.sensitivity[list(own)], longest=4, may_reuse=own.start > 0)
        parts.append(best_plans(costs))
    (first, cheap), (second, dear) = parts
    found = run_plans(two.gram, two.mix, two.sensitivity, two.starts)
    assert longest_gap(STEPS) == 4
    for count in range(STEPS + 1):
        divisions = [(cheap[m] + dear[count - m], m) for m in range(START + 1) if 0 <= count - m <= STEPS - START]
        least, share = min(divisions, default=(torch.inf, 0))
        if least == torch.inf:
            assert not found[count].any()
        else:
            later = [START + step for step in full_of(second[count - share])]
            assert full_of(found[count]) == [*full_of(first[share]), *later]


def test_both_experts_begin_with_a_full_step(two):
    assert two.full_steps[-1] == STEPS
    assert all({0, START} <= set(two.best_steps(count)) for count in two.full_steps)
    assert all({0, START} <= set(steps) and len(steps) == 8 for steps in candidates(two, 8))


def test_one_transformer_is_planned_as_before():
    made = made_up(steps=STEPS)
    alone, _ = best_plans(gap_costs(made.gram, made.mix[0], made.sensitivity))
    assert torch.equal(made.plans, alone)


def test_weights_are_of_the_experts_own_guidance(two):
    for anchors, step, number in (([3, 1, 0], 4, 0), ([7, 6, 5], 9, 1)):
        found = fit(two.gram, two.mix[number], torch.tensor([anchors]), torch.tensor([step]))[0]
        assert two.weights("cond", anchors, step) == found[0].tolist()
        assert two.weights("uncond", anchors, step) == found[1].tolist()
    other = fit(two.gram, two.mix[0], torch.tensor([[7, 6, 5]]), torch.tensor([9]))[0]
    assert two.weights("cond", [7, 6, 5], 9) != other[0].tolist()


@pytest.mark.parametrize(("anchors", "step"), [([4, 3], 6), ([6, 4], 7)])
def test_another_experts_anchors_are_refused(two, anchors, step):
    with pytest.raises(ConfigError, match=rf"begin at steps \[0, 5\], and step {step} is forecast from"):
        two.weights("cond", anchors, step)


def test_no_probe_on_a_step_without_an_anchor(two):
    for count in range(1, STEPS):
        steps = _probed(two, count)
        assert not {0, START} & set(steps)
        for step in steps:
            touched = {i % STEPS for i in _error_at(two, step).nonzero()[:, 0].tolist()}
            assert all(two.expert(other) == two.expert(step) for other in touched)


def test_a_plan_is_led_through_the_start_of_the_second_expert():
    assert _through([0, 1, 2, 5, 9], (0, 6)) == (0, 1, 2, 6, 9)
    assert _through([0, 1, 6, 9], (0, 6)) == (0, 1, 6, 9)
    assert _through([0, 7], (0, 6)) == (0, 6)


def test_a_file_of_two_experts_is_read_as_it_was_written(two, tmp_path):
    two.save(tmp_path / "two.safetensors")
    read = load_calibration(tmp_path / "two.safetensors")
    assert (read.starts, read.about) == ((0, START), two.about)
    assert torch.equal(read.mix, two.mix)
    assert read.best_steps(8) == two.best_steps(8)


def test_a_file_from_before_there_were_two_experts_is_read(tmp_path):
    made = made_up(steps=STEPS)
    tensors = {name: getattr(made, name) for name in ("gram", "sensitivity", "plans")} | {"mix": made.mix[0].clone()}
    about = '{"branches": ["cond", "uncond"], "weights": "org/wan"}'
    save_file(tensors, tmp_path / "old.safetensors", metadata={"format": FORMAT, "about": about})
    read = load_calibration(tmp_path / "old.safetensors")
    assert (read.starts, read.mix.tolist()) == ((0,), made.mix.tolist())
    assert read.weights("cond", [3, 1], 4) == made.weights("cond", [3, 1], 4)


@pytest.mark.parametrize("starts", [(), (1,), (0, 0), (0, 9, 5), (0, STEPS), (False, True)])
def test_transformers_that_cannot_begin_there_are_refused(two, tmp_path, starts):
    replace(two, starts=starts).save(tmp_path / "odd.safetensors")
    with pytest.raises(ConfigError, match="its transformers cannot begin at steps"):
        load_calibration(tmp_path / "odd.safetensors")


def test_a_plan_past_the_second_start_is_refused(two, tmp_path):
    plans = two.plans.clone()
    others = [step for step in range(1, STEPS) if not plans[8, step]]
    plans[8, [START, others[0]]] = torch.tensor([False, True])
    replace(two, plans=plans).save(tmp_path / "odd.safetensors")
    with pytest.raises(ConfigError, match="its plans are none, or not of the numbers"):
        load_calibration(tmp_path / "odd.safetensors")


def test_runs_of_other_boundaries_and_second_guidances_are_others(two):
    kind = RunKind("org/wan", "UniPCMultistepScheduler", 3.0, STEPS, 5.0, boundary=0.9, guidance_2=3.0)
    assert kind.scales == [5.0, 3.0]
    assert replace(kind, guidance_2=None).scales == [5.0, 5.0]
    assert replace(kind, guidance_2=0.0).scales == [5.0, 0.0]
    assert str(kind).endswith("guidance=5, guidance_scale_2=3, boundary=0.9")
    fits = replace(two, about=asdict(kind))
    assert kind.matches(fits)
    for other in ({"boundary": None}, {"boundary": 0.875}, {"guidance_2": None}, {"guidance_2": 4.0}):
        assert not replace(kind, **other).matches(fits)
    assert not kind.matches(made_up(steps=STEPS))


@pytest.mark.parametrize(
    ("boundary", "message"),
    [
        (0.5, r"begin at steps \[0, 5\], and step 7 is forecast from steps \[6, 5"),
        (0.95, r"is for experts that begin at steps \[0, 5\], and one of this run's began at step 2"),
    ],
)
def test_an_expert_that_takes_over_elsewhere_is_refused(wan, two, tmp_path, boundary, message):
    """From Python nobody knows beforehand where that will be: the run stops before it forecasts from nonsense."""
    path = tmp_path / "two.safetensors"
    two.save(path)
    pipe = wan.random_pipeline(num_layers=1)
    pipe.register_modules(transformer_2=wan.random_transformer(num_layers=1))
    pipe.register_to_config(boundary_ratio=boundary)
    config = TapConfig(calibration=str(path), blend=0.5, schedule=ScheduleConfig(kind="calibrated", speedup=2.0))
    tap = enable_tap(pipe, config)
    with pytest.raises(ConfigError, match=message):
        wan.denoise(pipe, steps=STEPS)
    tap.disable()
    enable_tap(pipe, replace(config, blend=0.0))  # its full steps alone are no better
    with pytest.raises(ConfigError, match=r"for experts that begin at steps \[0, 5\], and one of this run's began at"):
        wan.denoise(pipe, steps=STEPS)


def test_schedules_for_other_experts_are_not_rehearsed(asked_of_two, two, tmp_path):
    config = asked_of_two(f"rehearse={tmp_path / 'two.safetensors'}", "dry_run=true")
    replace(two, about=asdict(run_kind(config))).save(tmp_path / "two.safetensors")
    message = r"rehearse='.*two.safetensors' is for transformers that begin at steps \[0, 5\]"
    with pytest.raises(ConfigError, match=message):
        calibrate.run(config)


@pytest.mark.parametrize("value", ["high", "[3.0]", "true"])
def test_a_second_guidance_that_is_no_number_is_refused(asked_of_two, value):
    with pytest.raises(ConfigError, match=r"model.call.guidance_scale_2=.* is no number; allowed: a number, or null"):
        run_kind(asked_of_two(f"model.call.guidance_scale_2={value}"))


def test_an_expert_with_next_to_no_step_is_refused(asked_of_two):
    config = asked_of_two("dry_run=true", "flow_shift=1.0")
    assert len(experts(config)["transformer"]) == 2
    with pytest.raises(ConfigError, match=r"leave an expert next to nothing \(transformer 2, transformer_2 12\)"):
        calibrate.run(config)


def test_a_calibration_of_two_experts_from_end_to_end(asked_of_two):
    """Products of all steps' residuals, whichever expert made them; the guidance of each."""
    config = asked_of_two("model.call.guidance_scale_2=2.0")
    start, g = experts(config)["transformer_2"].start, config.guidance
    found = load_calibration(calibrate.run(config))
    assert found.starts == (0, start)
    assert found.mix.tolist() == [[g, 1 - g], [2.0, -1.0]]
    assert run_kind(config).matches(found)
    pipe, before, after = load_pipeline(config), [], []
    for name in ("transformer", "transformer_2"):
        blocks = getattr(pipe, name).blocks
        blocks[0].register_forward_pre_hook(lambda _, args: before.append(args[0].double()))
        blocks[-1].register_forward_hook(lambda _, args, output: after.append(output.double()))
    sample(pipe, config, "a red circle", 3, lambda _: None, decode=False)
    residuals = torch.stack([b - a for a, b in zip(before, after, strict=True)])
    flat = torch.cat([residuals[0::2], residuals[1::2]]).flatten(1)  # cond, then uncond
    torch.testing.assert_close(found.gram, flat @ flat.T / residuals.shape[2], rtol=1e-4, atol=1e-6)


def test_calibrated_experts_do_not_warm_up(model_config, tmp_path):
    path = tmp_path / "two.safetensors"
    run = model_config("wan22", "tap=default", f"tap.calibration={path}", "schedule.speedup=2.0")
    start = experts(run)["transformer_2"].start
    made = made_up(steps=STEPS, starts=(0, start))
    full = [*range(4), start, start + 2, start + 4]  # and none right after the start
    plans = made.plans.clone()
    plans[7] = False
    plans[7, full] = True
    replace(made, plans=plans).save(path)
    assert [step for step, kind in enumerate(plan_steps(run)) if kind is StepKind.FULL] == full
    pipe = load_pipeline(run)
    with accelerated(pipe, run) as tap:
        sample(pipe, run, "a red circle", 3, lambda _: None, decode=False)
        assert tap.summary().full_steps == full
        assert min(record.step for record in tap.traces["transformer_2"].records) == start
