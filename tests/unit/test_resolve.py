"""From `tap.calibration=auto` to a file, or to the method that needs none."""

import logging
import shutil
from dataclasses import asdict, replace

import pytest
from calibrations import made_up

from tapvideo import default_config, enable_tap, generate
from tapvideo.calibration import find as finding
from tapvideo.calibration.find import RunKind
from tapvideo.config import ConfigError, ScheduleConfig, TapConfig
from tapvideo.planning import make_plan
from tapvideo.resolve import resolve, run_kind
from tapvideo.run_folder import run_folder
from tapvideo.schedule import StepKind, spread_plan
from tapvideo.schedulers import experts, plan_steps

STEPS = 14


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The user's folder of calibrations, empty; nothing ships."""
    monkeypatch.setenv("TAPVIDEO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(finding, "SHIPPED", tmp_path / "shipped")
    return tmp_path / "home" / "calibrations"


def fitting(config, **about):
    """A calibration for the runs of a config."""
    facts = asdict(run_kind(config)) | about
    return made_up(**facts)


def count(plan):
    return plan.count(StepKind.FULL)


def test_a_kind_is_what_the_config_says(composed, random_overrides, saved_pipeline):
    kind = run_kind(composed(*random_overrides, "guidance=4.5", "flow_shift=5"))
    assert kind == RunKind(str(saved_pipeline), "UniPCMultistepScheduler", 5.0, STEPS, 4.5)
    euler = run_kind(composed(*random_overrides, "scheduler=euler"))
    assert (euler.scheduler, euler.flow_shift) == ("FlowMatchEulerDiscreteScheduler", 3.0)


def test_auto_finds_the_calibration_that_fits(composed, random_overrides, own, caplog):
    config = composed(*random_overrides, "tap=default")
    made = fitting(config)
    made.save(own / "mine.safetensors")
    found = resolve(config)
    assert found.tap == replace(config.tap, calibration=str(own / "mine.safetensors"))
    assert found.schedule == config.schedule
    assert [s for s, kind in enumerate(plan_steps(found)) if kind is StepKind.FULL] == made.best_steps(6)
    assert caplog.messages == []
    assert resolve(found) == found


def test_what_ships_fits_the_model_that_ships(composed, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TAPVIDEO_HOME", str(tmp_path))
    found = resolve(composed("tap=default"))
    assert found.tap.calibration == str(finding.SHIPPED / "wan_tiny.safetensors")
    assert count(plan_steps(found)) == 20
    assert caplog.messages == []


def test_without_a_calibration_a_run_goes_by_what_needs_none(composed, random_overrides, own, caplog):
    config = composed(
        *random_overrides, "tap=default", "tap.maps=false", "tap.recompute.budget=0.1", "schedule.warmup=5"
    )
    with caplog.at_level(logging.WARNING):
        found = resolve(config)
    assert (found.tap.family, found.tap.name) == ("taylor", "default-uncalibrated")
    assert (found.tap.maps, found.tap.recompute) == (False, config.tap.recompute)  # what was asked for is kept
    assert (found.schedule.kind, found.schedule.speedup, found.schedule.warmup) == ("spread", 2.5, 5)
    assert plan_steps(found) == spread_plan(STEPS, count=6)
    (message,) = caplog.messages
    assert f"without a calibration, because there is none for {run_kind(config)}; tapvideo-calibrate makes" in message
    assert not found.tap_config.needs_calibration


@pytest.mark.parametrize(
    ("overrides", "family", "schedule"),
    [(["tap=calibrated"], "taylor", "interval"), (["tap=paper", "schedule=calibrated"], "taylor", "spread")],
)
def test_what_needs_no_calibration_stays(composed, random_overrides, own, overrides, family, schedule):
    config = composed(*random_overrides, *overrides)
    found = resolve(config)
    assert (found.tap.family, found.schedule.kind) == (family, schedule)
    if config.tap.family == "taylor":
        assert found.tap == config.tap
    else:
        assert found.schedule == config.schedule


@pytest.mark.parametrize(
    "overrides", [["tap=paper"], ["tap=off", "schedule=calibrated"], ["tap=paper", "schedule=spread"]]
)
def test_a_method_that_needs_none_is_left_alone(composed, random_overrides, own, overrides):
    config = composed(*random_overrides, *overrides)
    assert resolve(config) is config


@pytest.mark.parametrize("schedule", ["interval", "calibrated"])
def test_a_path_that_is_not_there_is_refused(composed, random_overrides, own, tmp_path, schedule):
    path = tmp_path / "none.safetensors"
    config = composed(*random_overrides, "tap=calibrated", f"tap.calibration={path}", f"schedule={schedule}")
    with pytest.raises(ConfigError, match=r"tap.calibration='.*none.safetensors' cannot be read .*; allowed: a file"):
        resolve(config)


@pytest.mark.parametrize("schedule", ["interval", "calibrated"])
def test_a_calibration_of_other_steps_is_refused_before_the_weights_are_loaded(
    composed, random_overrides, own, tmp_path, schedule
):
    made_up(steps=20).save(tmp_path / "one.safetensors")
    config = composed(
        *random_overrides, "tap=calibrated", f"tap.calibration={tmp_path / 'one.safetensors'}", f"schedule={schedule}"
    )
    with pytest.raises(ConfigError, match=r"one.safetensors' is for runs of 20 steps, and this one has 14; allowed"):
        resolve(config)
    short = replace(config, steps=4)  # all full: what the calibration is of does not matter
    assert count(plan_steps(resolve(short))) == 4


def test_a_named_calibration_of_other_runs_is_not_taken_without_a_word(
    composed, random_overrides, own, tmp_path, caplog
):
    config = composed(*random_overrides, "tap=default", f"tap.calibration={tmp_path / 'one.safetensors'}")
    fitting(config).save(tmp_path / "one.safetensors")
    resolve(config)
    assert caplog.messages == []
    resolve(replace(config, guidance=3.0, scheduler="euler"))
    (message,) = caplog.messages
    assert message.endswith(
        "one.safetensors' is of other runs: scheduler='UniPCMultistepScheduler', not 'FlowMatchEulerDiscreteScheduler';"
        f" guidance={config.guidance!r}, not 3.0"
    )


def test_a_run_too_short_to_forecast_is_sent_to_no_calibration(composed, random_overrides, own, caplog):
    short = resolve(composed(*random_overrides, "tap=default", "steps=8", "schedule.min_steps=12"))
    assert plan_steps(short) == spread_plan(8, count=8)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("overrides", "told"),
    [(["lora=/nope"], "lora='/nope'"), (["model=wan22", "model.call.guidance_scale_2=abc"], "guidance_scale_2='abc'")],
)
def test_a_dry_run_blames_no_weights_for_what_is_wrong_otherwise(composed, own, overrides, told, caplog):
    with pytest.raises(ConfigError, match=told):
        resolve(composed("prompt=x", "tap=default", "dry_run=true", *overrides))
    assert caplog.messages == []


def test_a_default_config_says_that_it_goes_without_and_refuses_what_has_no_plan(wan, own, caplog):
    pipe = wan.random_pipeline()
    assert default_config(pipe, steps=STEPS, guidance=6.0).name == "default-uncalibrated"
    (message,) = caplog.messages
    assert "without a calibration, because there is none for" in message
    scheduler, shift = type(pipe.scheduler).__name__, float(pipe.scheduler.config.flow_shift)
    made_up(**asdict(RunKind("x", scheduler, shift, STEPS, 6.0))).save(own / "mine.safetensors")
    assert default_config(pipe, steps=STEPS, guidance=6.0, weights="x").name == "default"
    with pytest.raises(ConfigError, match=r"schedule.speedup=100 is 1 full steps, .*; allowed: 1 to 2.8"):
        default_config(pipe, steps=STEPS, guidance=6.0, weights="x", speedup=100)


def test_a_path_is_made_absolute(composed, random_overrides, own, tmp_path, monkeypatch):
    made_up(steps=STEPS).save(tmp_path / "one.safetensors")
    monkeypatch.chdir(tmp_path)
    config = composed(*random_overrides, "tap=calibrated", "tap.calibration=one.safetensors")
    assert resolve(config).tap.calibration == str(tmp_path / "one.safetensors")


def test_two_experts_without_a_calibration(composed, random_overrides, own, caplog):
    config = composed(*random_overrides, "tap=default", "model.boundary=0.9")
    with caplog.at_level(logging.WARNING):
        found = resolve(config)
    assert (found.tap.family, found.schedule.kind) == ("taylor", "explicit")
    start = experts(found)["transformer_2"].start
    assert 0 < start < STEPS
    assert count(plan_steps(found)) == round(STEPS / 2.5)  # with the second one's warm-up
    assert resolve(found) == found
    assert "guidance=6, boundary=0.9; tapvideo-calibrate makes one" in caplog.text


def test_two_experts_with_a_calibration(composed, random_overrides, own, tmp_path):
    config = composed(*random_overrides, "tap=default", "model.boundary=0.9")
    start = experts(config)["transformer_2"].start
    made = fitting(config, starts=(0, start))
    made.save(own / "mine.safetensors")
    found = resolve(config)
    assert (found.tap.calibration, found.schedule.kind) == (str(own / "mine.safetensors"), "calibrated")
    plan = plan_steps(found)
    assert [step for step, kind in enumerate(plan) if kind is StepKind.FULL] == made.best_steps(round(STEPS / 2.5))
    assert start in made.best_steps(round(STEPS / 2.5))
    fitting(config, starts=(0, start + 1)).save(own / "mine.safetensors")  # by a scheduler with other settings
    assert (resolve(config).tap.family, resolve(config).schedule.kind) == ("taylor", "explicit")
    one, later = tmp_path / "one.safetensors", tmp_path / "later.safetensors"
    made_up(steps=STEPS).save(one)
    made_up(steps=STEPS, starts=(0, start + 1)).save(later)
    for path, starts in ((one, r"\[0\]"), (later, rf"\[0, {start + 1}\]")):
        named = replace(config, tap=replace(config.tap, calibration=str(path)))
        with pytest.raises(ConfigError, match=rf"begin at steps {starts}, and this run's begin at \[0, {start}\]"):
            resolve(named)


def test_a_folder_is_named_after_what_a_calibration_says_not_where_it_lies(composed, random_overrides, own, tmp_path):
    config = composed(*random_overrides, "tap=calibrated")

    def folder(path):
        return run_folder(resolve(replace(config, tap=replace(config.tap, calibration=str(path)))), ["a red circle"])

    one, copy, other = (tmp_path / name for name in ("a.safetensors", "below/b.safetensors", "c.safetensors"))
    made_up(steps=STEPS).save(one)
    copy.parent.mkdir()
    shutil.copy(one, copy)
    made_up(steps=STEPS, seed=1).save(other)
    assert folder(one) == folder(copy)
    assert folder(one) != folder(other)
    before = folder(one)
    shutil.copy(other, one)
    assert folder(one) != before


def test_a_run_says_that_it_has_no_calibration_and_is_made(composed, random_overrides, own):
    config = composed(*random_overrides, "tap=default", "compare=false", "dry_run=true")
    assert "default-uncalibrated" in generate.run(config).name
    fitting(config).save(own / "mine.safetensors")
    assert "-default-" in generate.run(config).name
    assert "uncalibrated" not in generate.run(config).name


def test_the_python_api_finds_the_same(wan, own):
    pipe = wan.random_pipeline(num_layers=1)
    fallback = default_config(pipe, steps=16, guidance=5.0, weights="org/wan")
    assert fallback == TapConfig(name="default-uncalibrated", schedule=ScheduleConfig(kind="spread", speedup=2.5))
    made = made_up(steps=16)
    made.save(own / "mine.safetensors")
    found = default_config(pipe, steps=16, guidance=5, speedup=2.0, weights="org/wan")
    assert (found.family, found.blend, found.calibration) == ("taylor", 0.5, str(own / "mine.safetensors"))
    assert [s for s, kind in enumerate(make_plan(found, 16)) if kind is StepKind.FULL] == made.best_steps(8)
    for other in ({"steps": 17}, {"guidance": 4.0}, {"weights": "org/other"}, {"weights": None}):
        asked = {"steps": 16, "guidance": 5.0, "weights": "org/wan"} | other
        assert default_config(pipe, **asked).blend == 0


def test_the_python_api_knows_two_experts(wan, own):
    pipe = wan.random_pipeline(num_layers=1)
    made_up(steps=16).save(own / "mine.safetensors")
    pipe.register_modules(transformer_2=wan.random_transformer(num_layers=1))
    assert default_config(pipe, steps=16, guidance=5.0, weights="org/wan").blend == 0  # where they change is not known
    pipe.register_to_config(boundary_ratio=0.9)
    asked = {"steps": 16, "guidance": 5.0, "weights": "org/wan", "guidance_2": 3.0}
    fallback = default_config(pipe, **asked, speedup=2.0)
    assert (fallback.blend, fallback.schedule.kind, len(fallback.schedule.steps)) == (0, "explicit", 8)
    tap = enable_tap(pipe, fallback)
    wan.denoise(pipe, steps=16)
    assert tap.summary().full_steps == fallback.schedule.steps  # the second expert's warm-up is among them
    start = min(record.step for record in tap.traces["transformer_2"].records)
    tap.disable()
    named = TapConfig(family="calibrated", calibration=str(own / "mine.safetensors"))
    with pytest.raises(ConfigError, match=r"mine\.safetensors' is of 1 transformer\(s\), and this pipeline has 2"):
        enable_tap(pipe, named)
    made_up(steps=16, starts=(0, start + 1), boundary=0.9, guidance_2=3.0).save(own / "both.safetensors")
    assert default_config(pipe, **asked).blend == 0  # of a scheduler with other settings
    made_up(steps=16, starts=(0, start), boundary=0.9, guidance_2=3.0).save(own / "both.safetensors")
    assert default_config(pipe, **asked).calibration == str(own / "both.safetensors")
    for other in ({"guidance_2": None}, {"guidance_2": 4.0}, {"guidance_2": 5.0}):
        assert default_config(pipe, **asked | other).blend == 0


@pytest.mark.parametrize("warmup", [2, 3])
def test_the_spread_of_two_experts_is_what_runs(composed, random_overrides, own, warmup):
    """Also where no calibration was asked for; a run without forecasts is left as it is."""
    asked = ["model.boundary=0.9", "schedule=spread", f"schedule.warmup={warmup}", "schedule.speedup=2.0"]
    config = resolve(composed(*random_overrides, "tap=paper", *asked))
    assert config.schedule.warmup == warmup
    assert count(plan_steps(config)) == len(config.schedule.steps) == 7
    off = composed(*random_overrides, "tap=off", *asked)
    assert resolve(off) == off
