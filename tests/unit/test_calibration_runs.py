"""Calibrations in runs: what a forecast step computes, what is kept, what is refused; a solver on nodes alone."""

import pytest
import torch
from calibrations import made_up
from diffusers import UniPCMultistepScheduler

from tapvideo import ScheduleConfig, TapConfig, enable_tap
from tapvideo.config import ConfigError, RecomputeConfig
from tapvideo.planning import make_plan, read_calibration
from tapvideo.schedule import StepKind
from tapvideo.schedulers import NodeUniPC

STEPS = 16


@pytest.fixture
def pipe(wan):
    """A tiny random `WanPipeline` of one block."""
    return wan.random_pipeline(num_layers=1)


@pytest.fixture
def saved(tmp_path):
    """A calibration for runs of the tiny random pipeline, and its file."""
    made = made_up(steps=STEPS)
    made.save(tmp_path / "made.safetensors")
    return made, str(tmp_path / "made.safetensors")


def calibrated(path, **schedule):
    return TapConfig(family="calibrated", calibration=path, schedule=ScheduleConfig(**schedule))


def full_steps(plan):
    return [i for i, kind in enumerate(plan) if kind is StepKind.FULL]


def test_full_steps_alone_are_plain_diffusers_bit_for_bit(wan, pipe, saved):
    plain = wan.denoise(pipe, steps=STEPS)
    tap = enable_tap(pipe, calibrated(saved[1], interval=1))
    assert torch.equal(wan.denoise(pipe, steps=STEPS), plain)
    tap.disable()
    assert torch.equal(wan.denoise(pipe, steps=STEPS), plain)


def test_a_forecast_step_adds_the_weighted_residuals_of_its_branch(wan, pipe, saved):
    made, path = saved
    enable_tap(pipe, calibrated(path, interval=4))
    stack = pipe.transformer._diffusers_hook.get_hook("tapvideo").stack
    seen = {}

    def note(module, args, output):
        seen[module.call[0].branch, module.call[0].step] = args[0].double(), output.double()

    stack.register_forward_hook(note)
    wan.denoise(pipe, steps=STEPS)
    for branch in made.branches:
        for step, anchors in ((3, [2, 1, 0]), (9, [6, 2, 1]), (13, [10, 6, 2])):
            weights = torch.tensor(made.weights(branch, anchors, step)).double()
            residuals = torch.stack([seen[branch, s][1] - seen[branch, s][0] for s in anchors])
            hidden, output = seen[branch, step]
            expected = hidden + torch.einsum("k,kbnd->bnd", weights, residuals)
            torch.testing.assert_close(output, expected, rtol=0, atol=2e-5)
    assert made.weights("cond", [6, 2, 1], 9) != made.weights("uncond", [6, 2, 1], 9)


def test_a_calibrated_schedule_is_kept_to_the_step(wan, pipe, saved):
    made, path = saved
    config = calibrated(path, kind="calibrated", speedup=2.5)
    tap = enable_tap(pipe, config)
    wan.denoise(pipe, steps=STEPS)
    assert tap.summary().full_steps == made.best_steps(6) == full_steps(make_plan(config, STEPS))
    assert {label for r in tap.trace.records if r.kind is StepKind.FORECAST for label in r.labels} == {"calibrated"}


def test_no_probe_is_computed_or_kept(wan, saved, monkeypatch):
    kept = {}
    paper = TapConfig(schedule=ScheduleConfig(interval=4))
    for name, config in (("paper", paper), ("own", calibrated(saved[1], interval=4))):
        pipe = wan.random_pipeline(num_layers=1)
        tap = enable_tap(pipe, config)
        adapter = pipe.transformer._diffusers_hook.get_hook("tapvideo").stack.adapter
        if name == "own":
            monkeypatch.setattr(type(adapter), "modulated_input", lambda *_: pytest.fail("a probe was computed"))
        wan.denoise(pipe, steps=STEPS)
        kept[name] = tap.summary().state_bytes
    assert kept["own"] / 2 == kept["paper"] / 3 > 0  # two residuals an anchor, and a probe of both branches


def test_tokens_may_be_recomputed_as_well(wan, pipe, saved):
    config = calibrated(saved[1], interval=4)
    config.recompute = RecomputeConfig(budget=0.25)
    tap = enable_tap(pipe, config)
    assert torch.isfinite(wan.denoise(pipe, steps=STEPS)).all()
    shares = tap.summary().shares[9]
    assert shares == {"calibrated": pytest.approx(0.75), "recomputed": pytest.approx(0.25)}


@pytest.mark.parametrize("schedule", [{"interval": 4}, {"kind": "calibrated", "speedup": 2.0}])
def test_a_run_of_other_steps_is_refused(wan, pipe, saved, schedule):
    enable_tap(pipe, calibrated(saved[1], **schedule))
    allowed = f"is for runs of {STEPS} steps, and this one has 15; allowed: steps={STEPS}, or a calibration of its own"
    with pytest.raises(ConfigError, match=f"tap.calibration='.*made.safetensors' {allowed}"):
        wan.denoise(pipe, steps=15)


def test_a_run_too_short_to_accelerate_needs_no_such_calibration(wan, pipe, saved):
    plain = wan.denoise(pipe, steps=4)
    enable_tap(pipe, calibrated(saved[1], kind="calibrated", speedup=2.0))
    assert torch.equal(wan.denoise(pipe, steps=4), plain)


def test_a_branch_that_the_calibration_does_not_know_is_refused(wan, pipe, tmp_path):
    made_up(steps=STEPS, branches=("cond",)).save(tmp_path / "one.safetensors")
    enable_tap(pipe, calibrated(str(tmp_path / "one.safetensors"), interval=4))
    with pytest.raises(ConfigError, match=r"tap.calibration has no branch 'uncond'; allowed: runs of cond"):
        wan.denoise(pipe, steps=STEPS)


def test_what_was_not_looked_up_is_refused(pipe, tmp_path):
    with pytest.raises(ConfigError, match=r"tap.calibration='auto' is looked up before TAP .* allowed here: a file"):
        enable_tap(pipe, TapConfig(family="calibrated"))
    with pytest.raises(ConfigError, match=r"tap.calibration='.*none.safetensors' cannot be read"):
        enable_tap(pipe, calibrated(str(tmp_path / "none.safetensors")))
    assert read_calibration(TapConfig()) is None
    assert read_calibration(TapConfig(family="calibrated", enabled=False)) is None


def test_a_speedup_beyond_the_plans_is_refused(saved):
    config = calibrated(saved[1], kind="calibrated", speedup=8.0)
    with pytest.raises(ConfigError, match=r"schedule.speedup=8.0 is 2 full steps, .* no plan; allowed: 1 to 4, or"):
        make_plan(config, STEPS)
    for speedup in (1.0, 4.0):  # the ends of what is allowed
        plan = make_plan(calibrated(saved[1], kind="calibrated", speedup=speedup), STEPS)
        assert len(full_steps(plan)) == STEPS / speedup


def unipc():
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def timed(scheduler, num_steps):
    scheduler.set_timesteps(num_steps)
    return scheduler


def ends(scheduler, num_steps, velocity):
    """Where a run of a velocity field ends, from fixed noise."""
    scheduler.set_timesteps(num_steps)
    sample = torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    for time in scheduler.timesteps:
        sample = scheduler.step(velocity(sample, time), time, sample, return_dict=False)[0]
    return sample


def bent(sample, time):
    return torch.tanh(sample) + torch.sin(time / 200) * sample


def test_all_nodes_are_unipc_bit_for_bit():
    nodes = NodeUniPC.at(unipc(), 20, list(range(20)))
    assert torch.equal(ends(nodes, 20, bent), ends(unipc(), 20, bent))
    assert torch.equal(nodes.sigmas, timed(unipc(), 20).sigmas)


@pytest.mark.parametrize("steps", [[0, 1, 4, 9, 19], [0], [0, 7]])
def test_nodes_have_the_noise_levels_of_the_longer_run(steps):
    whole, nodes = timed(unipc(), 20), timed(NodeUniPC.at(unipc(), 20, steps), 3)
    assert nodes.timesteps.tolist() == [whole.timesteps[s].item() for s in steps]
    assert nodes.sigmas.tolist() == [*(whole.sigmas[s].item() for s in steps), 0.0]
    assert nodes.num_inference_steps == len(steps)


@pytest.mark.parametrize("steps", [[0, 1, 4, 9, 19], [0, 2, 5], [0, 7]])
def test_a_straight_path_ends_where_it_leads_whatever_the_nodes(steps):
    """Velocity noise - clip, the same at every step: no step of a solver errs."""
    noise = torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    clip = torch.linspace(-1, 1, noise.numel()).reshape(noise.shape)
    made = ends(NodeUniPC.at(unipc(), 20, steps), len(steps), lambda *_: noise - clip)
    torch.testing.assert_close(made, clip, rtol=0, atol=1e-4)


def test_a_pipeline_runs_the_nodes_and_no_others(wan, pipe):
    whole = timed(unipc(), STEPS).timesteps
    pipe.scheduler = NodeUniPC.at(pipe.scheduler, STEPS, [0, 1, 5, 10])
    times = []
    pipe.transformer.register_forward_pre_hook(lambda *a: times.append(a[2]["timestep"].item()), with_kwargs=True)
    assert torch.isfinite(wan.denoise(pipe, steps=4, guidance=1.0)).all()
    assert times == whole[[0, 1, 5, 10]].tolist()
