"""Making a calibration: what is recorded, what is measured, and one made of a tiny random pipeline from end to end."""

import math
import shutil
from dataclasses import asdict, replace

import pytest
import torch
from calibrations import made_up
from hydra import compose, initialize_config_dir

from tapvideo import calibrate, rehearsal
from tapvideo.calibrate import CalibrateConfig, Recorder, apart, mixture
from tapvideo.calibration import find as finding
from tapvideo.calibration import load_calibration
from tapvideo.calibration.find import RunKind
from tapvideo.calibration.weights import errors, fit
from tapvideo.config import ConfigError, config_dir, from_hydra
from tapvideo.console import Console
from tapvideo.models.watch import StackCall, watched
from tapvideo.pipeline import load_pipeline
from tapvideo.rehearsal import Known, _between, candidates, measure_sensitivity, rehearse
from tapvideo.resolve import DEFAULT_BLEND, resolve, run_kind
from tapvideo.sample import sample
from tapvideo.schedule import StepKind, power_plan, spread_plan
from tapvideo.schedulers import plan_steps

QUIET = Console(verbose=False)
SMALL = ("steps=12", "probes=2", "probe_clips=1", "rehearsal_clips=1", "speedups=[2.0]", "tokens=6", "seeds=[3]")


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The user's folder of calibrations, empty; nothing ships."""
    monkeypatch.setenv("TAPVIDEO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(finding, "SHIPPED", tmp_path / "shipped")
    return tmp_path / "home" / "calibrations"


@pytest.fixture
def asked(random_overrides):
    """Compose `conf/calibrate.yaml` for the random pipeline, as the command line does."""

    def compose_config(*overrides):
        with initialize_config_dir(str(config_dir().resolve()), version_base="1.3"):
            return from_hydra(CalibrateConfig, compose("calibrate", [*random_overrides, *SMALL, *overrides]))

    return compose_config


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def told(recorder, steps, branches=("cond", "uncond"), tokens=10, batch=1, dtype=torch.float32):
    """Tell a recorder of a clip; its residuals, [branch, step, batch, token, d]."""
    hidden = noise(len(branches), steps, batch, tokens, 8).to(dtype)
    output = noise(len(branches), steps, batch, tokens, 8, seed=1).to(dtype)
    for step in range(steps):
        for i, branch in enumerate(branches):
            call = StackCall(branch, step, None, hidden[i, step], hidden[i, step], output[i, step])
            recorder.see(call)
    return output.double() - hidden.double()


@pytest.mark.parametrize(("batch", "dtype"), [(1, torch.float32), (2, torch.float32), (1, torch.bfloat16)])
def test_recorder_has_the_inner_products_per_token(batch, dtype):
    recorder = Recorder(tokens=100)  # more than there are: all
    flat = told(recorder, 3, batch=batch, dtype=dtype).flatten(2).flatten(0, 1)
    assert recorder.branches() == ("cond", "uncond")
    torch.testing.assert_close(recorder.gram(3), flat @ flat.T / (10 * batch), rtol=1e-5, atol=1e-5)


def test_recorder_keeps_the_same_tokens_of_every_step_and_clip():
    recorder, again = Recorder(tokens=4), Recorder(tokens=4)
    residuals = told(recorder, 3)
    told(again, 3)
    rows = recorder._rows
    assert rows is not None
    assert len(rows.unique()) == 4
    flat = residuals[:, :, :, rows].flatten(2).flatten(0, 1)
    torch.testing.assert_close(recorder.gram(3), flat @ flat.T / 4, rtol=1e-5, atol=1e-5)
    assert torch.equal(again.gram(3), recorder.gram(3))


def test_recorder_multiplies_piece_by_piece(monkeypatch):
    recorder = Recorder(tokens=10)
    told(recorder, 3)
    whole = recorder.gram(3)
    monkeypatch.setattr(calibrate, "_COLUMNS", 24)  # three tokens of eight channels at a time
    torch.testing.assert_close(recorder.gram(3), whole)


@pytest.mark.parametrize("seen", [0, 2, 4])
def test_recorder_refuses_a_clip_of_other_steps(seen):
    recorder = Recorder(tokens=4)
    told(recorder, seen)
    with pytest.raises(ConfigError, match=f"steps=3 is not what the pipeline made: it told of {seen} steps"):
        recorder.gram(3)


def test_mixture_is_the_guided_sum():
    assert mixture(("cond", "uncond"), 5.0).tolist() == [5.0, -4.0]
    assert mixture(("uncond", "cond"), 5.0).tolist() == [-4.0, 5.0]
    assert mixture(("cond",), 5.0).tolist() == [1.0]
    assert mixture(("cond_uncond",), 5.0).tolist() == [1.0]


def test_branches_that_are_mixed_otherwise_are_kept_apart():
    gram = noise(6, 6).double()
    assert torch.equal(apart(gram, ("cond", "uncond")), gram)
    assert torch.equal(apart(gram, ("cond",)), gram)
    expected = gram.clone()
    expected[:3, 3:] = expected[3:, :3] = 0
    assert torch.equal(apart(gram, ("one", "other")), expected)


def test_between_probes_is_a_straight_line_of_logarithms():
    found = _between([2, 4, 8], [0.0, 2.0, 1.0], 10).log()
    expected = torch.tensor([0, 0, 0, 1, 2, 1.75, 1.5, 1.25, 1, 1], dtype=torch.float64)
    torch.testing.assert_close(found, expected)
    assert _between([3], [1.0], 5).tolist() == pytest.approx([math.e] * 5)


def test_sensitivity_is_the_distance_over_the_error(pipe, asked, monkeypatch):
    """Runs that end 7 errors away with one at the first probe, 2 at the second; two clips, each of its own Gram."""
    made = made_up(steps=12)
    clips = [Known(("a", s), made_up(steps=12, seed=s).gram, noise(1, 4)) for s in range(2)]
    probes = [s for s, kind in enumerate(power_plan(12, count=3)) if kind is StepKind.FULL][1:]

    def error(known, step):
        anchors = torch.tensor([[s for s in (step - 1, step - 2, step - 3) if s >= 0]])
        found = fit(made.gram, made.mix, anchors, torch.tensor([step]))
        wrong = errors(found, made.mix, anchors, torch.tensor([step]), 12)[0]
        return math.sqrt(wrong @ known.gram @ wrong)

    def distances(_pipe, _config, _made, known, full):
        (step,) = set(range(12)) - set(full)
        return [error(k, step) * (7 if step == probes[0] else 2) * f for k, f in zip(known, (0.5, 2.0), strict=True)]

    monkeypatch.setattr(rehearsal, "_distances", distances)
    found = measure_sensitivity(pipe, asked(), made, clips, 2, QUIET)
    torch.testing.assert_close(found, _between(probes, [math.log(7), math.log(2)], 12))


def test_a_rehearsal_keeps_what_comes_nearest(pipe, asked, monkeypatch):
    made = made_up(steps=18)
    tried = candidates(made, 9)
    assert len(tried) == len(set(tried)) > 1
    assert tuple(made.best_steps(9)) in tried
    assert all(len(steps) == 9 and steps[0] == 0 for steps in tried)
    clips = [Known(("a", 0), made.gram, noise(1, 4))]
    monkeypatch.setattr(rehearsal, "candidates", lambda *_: tried)  # found once
    for best in tried:

        def distances(*given, blend, best=best):
            assert blend == DEFAULT_BLEND  # what is rehearsed is what runs
            return [0.1 if given[-1] == list(best) else 0.2]

        monkeypatch.setattr(rehearsal, "_distances", distances)
        found = rehearse(pipe, asked("steps=18"), made, clips, [2.0], QUIET)
        assert found.best_steps(9) == list(best)
        others = [count for count in range(19) if count != 9]
        assert torch.equal(found.plans[others], made.plans[others])
    assert rehearse(pipe, asked("steps=18"), made, [], [2.0], QUIET).best_steps(9) == made.best_steps(9)
    least = made.full_steps[0]  # fewer cannot be had, and a row of their own would leave a hole
    assert torch.equal(rehearse(pipe, asked("steps=18"), made, clips, [18 / (least - 1)], QUIET).plans, made.plans)


def test_several_ranks_are_refused(asked, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="WORLD_SIZE=2: a calibration is made by one process; allowed: 1"):
        calibrate.run(asked())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tokens=0", "tokens=0 is too small; allowed: 1 or more"),
        ("probes=0", "probes=0 is too small; allowed: 1 or more"),
        ("probe_clips=0", "probe_clips=0 is too small; allowed: 1 or more"),
        ("rehearsal_clips=-1", "rehearsal_clips=-1 is too small; allowed: 0 or more"),
        ("steps=11", "steps=11 leaves nothing to forecast; allowed: 12 or more"),
        ("probes=12", "probes=12 of 12 steps; allowed: 1 to 11"),
        ("speedups=[2,7]", r"speedups=\[2.0, 7.0\]; allowed: numbers above 1, up to 6"),
        ("speedups=[1]", r"speedups=\[1.0\]; allowed: numbers above 1, up to 6"),
        ("model.boundary=0.9", "model=random: two experts cannot be calibrated; allowed: one transformer"),
        ("output=made.bin", "output='made.bin' is no name of a calibration; allowed: names ending in .safetensors"),
        ("tokenz=1", "tokenz"),
    ],
)
def test_what_cannot_be_is_refused(asked, override, message):
    with pytest.raises(ConfigError, match=message):
        asked(override if "tokenz" not in override else f"+{override}")


def test_a_dry_run_loads_and_writes_nothing(asked, own, monkeypatch, capsys):
    monkeypatch.setattr(calibrate, "load_pipeline", lambda *_: pytest.fail("weights were loaded"))
    path = calibrate.run(asked("dry_run=true", "verbose=true"))
    assert path.parent == own
    assert not own.exists()
    assert str(path) in capsys.readouterr().out


def test_files_of_other_runs_have_other_names(asked, own):
    config = asked("dry_run=true")

    def name(**changes):
        return calibrate.run(replace(config, **changes)).name

    assert name() == name(tokens=5, seeds=[9])
    assert name().startswith("random-unipc-shift3-12-g6")
    long = replace(config.model, name="long_" * 12)  # is cut
    changes = ({"steps": 13}, {"guidance": 5.5}, {"flow_shift": 3.25}, {"scheduler": "euler"}, {})
    assert len({name(model=long, **change) for change in changes}) == 5
    tuned = replace(config.model, weights=shutil.copytree(config.model.weights, f"{own.parent}_tuned"))
    assert name(model=tuned) != name()  # or a tune's calibration would replace the original's


def test_an_output_that_cannot_be_written_is_refused_before_the_work(asked, own, tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate, "load_pipeline", lambda *_: pytest.fail("weights were loaded"))
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "folder.safetensors").mkdir()
    for path in (tmp_path / "file" / "x.safetensors", tmp_path / "folder.safetensors"):
        with pytest.raises(ConfigError, match=r"output='.*safetensors' cannot be written .*; allowed: "):
            calibrate.run(asked(f"output={path}"))


def test_guidance_counts_as_the_pipeline_mixes_it(asked):
    """Where `guidance` is an embedding, another key says how branches are mixed."""
    config = asked("guidance=6.0")
    assert (run_kind(config).scale, run_kind(config).true_cfg) == (6.0, None)
    model = replace(config.model, pipeline="HunyuanVideoPipeline", call={"true_cfg_scale": 4.0})
    embedded = replace(config, model=model, scheduler="unipc")
    assert (run_kind(embedded).scale, run_kind(embedded).guidance) == (4.0, 6.0)
    plain = replace(embedded, model=replace(model, call={"true_cfg_scale": 1.0}))
    assert (run_kind(plain).scale, run_kind(plain).true_cfg) == (6.0, None)
    made = made_up(**asdict(run_kind(plain)))
    assert run_kind(plain).matches(made)
    assert not run_kind(embedded).matches(made)


def test_a_rehearsal_sets_offloading_up_again(asked, monkeypatch):
    """Accelerate's hooks go over TAP's: those that `load_pipeline` has set up must go first."""
    pipe = load_pipeline(asked())
    events = []

    def offload(**_):
        pipe.transformer._hf_hook = object()
        events.append("on")

    def remove():
        del pipe.transformer._hf_hook
        events.append("off")

    monkeypatch.setattr("tapvideo.pipeline.resolve_device", lambda _: torch.device("cpu"))
    monkeypatch.setattr(pipe, "enable_model_cpu_offload", offload)
    monkeypatch.setattr(pipe, "remove_all_hooks", remove)
    offload()
    made = made_up(steps=12)
    final = sample(pipe, asked(), "a red circle", 3, lambda _: None).latents
    clips = [Known(("a red circle", 3), made.gram, final)]
    (moved,) = rehearsal._distances(pipe, asked("offload=model"), made, clips, list(range(11)))
    assert moved > 0
    assert events == ["on", "off", "on"]


def test_a_calibration_from_end_to_end(asked, composed, random_overrides, own, monkeypatch):
    monkeypatch.setattr("diffusers.AutoencoderKLWan.decode", lambda *_, **__: pytest.fail("frames that nobody sees"))
    config = asked()
    path = calibrate.run(config, command="tapvideo-calibrate x")
    assert list(own.iterdir()) == [path]
    made = load_calibration(path)
    assert (made.branches, made.num_steps, made.mix.tolist()) == (("cond", "uncond"), 12, [6.0, -5.0])
    assert RunKind(**{name: made.about[name] for name in asdict(run_kind(config))}) == run_kind(config)
    assert made.about["name"] == "random"
    about = made.about["made"]
    assert (about["command"], about["clips"]) == ("tapvideo-calibrate x", [["a red circle", 3]])
    assert {"torch", "diffusers", "tapvideo"} <= set(about["versions"])
    assert len(made.sensitivity.unique()) > 1
    assert torch.equal(made.gram, made.gram.T)
    recorder, pipe = Recorder(tokens=6), load_pipeline(config)
    with watched(pipe.transformer, recorder.see):
        sample(pipe, config, "a red circle", 3, lambda _: None, decode=False)
    torch.testing.assert_close(recorder.gram(12), made.gram)
    found = resolve(composed(*random_overrides, "tap=default", "steps=12"))
    assert found.tap.calibration == str(path)
    assert [s for s, kind in enumerate(plan_steps(found)) if kind is StepKind.FULL] == made.best_steps(5)


def test_schedules_alone_can_be_rehearsed_again(asked, own, monkeypatch):
    path = calibrate.run(asked())
    first = load_calibration(path)
    monkeypatch.setattr(calibrate, "measure_sensitivity", lambda *_: pytest.fail("measured again"))
    tried = []
    monkeypatch.setattr(rehearsal, "candidates", lambda *_: tried.append(1) or [(0, 1, 2, 5, 8, 11)])
    again = load_calibration(calibrate.run(asked("rehearse=auto", "seeds=[4,5]", "rehearsal_clips=2")))
    assert tried
    assert again.best_steps(6) == [0, 1, 2, 5, 8, 11]
    assert torch.equal(again.gram, first.gram)
    assert torch.equal(again.sensitivity, first.sensitivity)
    assert again.about["made"] == first.about["made"]
    assert [seed for _, seed in again.about["rehearsed"]["clips"]] == [4, 5]
    named = asked(f"rehearse={path}", "output=other.safetensors")
    assert calibrate._before(named) is not None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rehearse=auto"], "rehearse='auto': there is no calibration for .*; allowed: null"),
        (["rehearse=auto", "rehearsal_clips=0"], "rehearsal_clips=0, and rehearse='auto' does nothing else"),
        (["rehearse=OTHER"], "rehearse='.*' is not for .*; allowed: a calibration of such runs, or auto"),
        (["rehearse=/nowhere.safetensors"], "cannot be read"),
    ],
)
def test_what_cannot_be_rehearsed_again(asked, own, tmp_path, overrides, message):
    other = tmp_path / "other.safetensors"
    made_up(steps=12).save(other)
    with pytest.raises(ConfigError, match=message):
        calibrate.run(asked(*(o.replace("OTHER", str(other)) for o in overrides)))


def test_clips_of_a_rehearsal_are_spread_over_all_and_end_as_un_accelerated_ones_do(asked, own, monkeypatch):
    calibrate.run(asked())
    seen = []
    monkeypatch.setattr(calibrate, "rehearse", lambda pipe, config, found, known, *_: seen.extend(known) or found)
    calibrate.run(asked("rehearse=auto", "seeds=[4,5,6,7]", "rehearsal_clips=2"))
    assert [known.clip[1] for known in seen] == [4, 6]
    config = asked()
    for known in seen:
        final = sample(load_pipeline(config), config, *known.clip, lambda _: None, decode=False).latents
        assert torch.equal(known.final, final.cpu())


def test_a_rehearsal_tries_what_there_is_and_what_needs_no_calibration():
    made = made_up(steps=18)
    plans = made.plans.clone()
    odd = [0, 1, 2, 3, 4, 5, 6, 7, 17]
    plans[9] = False
    plans[9, odd] = True
    tried = candidates(replace(made, plans=plans), 9)
    assert tried[0] == tuple(odd)
    for plan in (spread_plan(18, count=9), power_plan(18, count=9), power_plan(18, count=9, power=1.9)):
        assert tuple(i for i, kind in enumerate(plan) if kind is StepKind.FULL) in tried
