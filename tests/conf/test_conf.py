"""The yaml files: every group composes, and holds exactly the keys of its dataclass."""

from dataclasses import fields

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tapvideo.cli.generate import quote_text
from tapvideo.config import ForecastConfig, GenerateConfig, ModelConfig, ParallelConfig, ScheduleConfig, config_dir
from tapvideo.planning import make_plan
from tapvideo.resolve import resolve
from tapvideo.schedule import StepKind

GROUPS = {"model": ModelConfig, "tap": ForecastConfig, "schedule": ScheduleConfig, "parallel": ParallelConfig}
OPTIONS = [f"{group}={path.stem}" for group in GROUPS for path in sorted((config_dir() / group).glob("*.yaml"))]


def test_every_group_has_options():
    assert {option.partition("=")[0] for option in OPTIONS} == set(GROUPS)


@pytest.mark.parametrize("option", OPTIONS)
def test_option_composes(composed, option):
    group, _, name = option.partition("=")
    config = composed(option)
    if group in ("model", "tap"):
        assert getattr(config, group).name == name


@pytest.mark.parametrize("group", GROUPS)
def test_keys_are_the_dataclass_fields(group):
    """A key that only one side has could not be overridden, or would be read by nothing."""
    with initialize_config_dir(str(config_dir().resolve()), version_base="1.3"):
        raw = compose("generate")
    assert set(raw[group]) == {f.name for f in fields(GROUPS[group])}
    assert set(raw) == {f.name for f in fields(GenerateConfig)}


def test_defaults_are_the_dataclass_defaults(composed):
    """Python users and the command line get the same method and schedule."""
    config = composed()
    assert config.tap == ForecastConfig()
    assert config.schedule == ScheduleConfig()
    assert config.parallel == ParallelConfig()


def test_hydra_makes_no_folders_of_its_own():
    with initialize_config_dir(str(config_dir().resolve()), version_base="1.3"):
        hydra = compose("generate", return_hydra_config=True).hydra
    assert (hydra.run.dir, hydra.output_subdir, hydra.job.chdir) == (".", None, False)
    assert "file" not in OmegaConf.select(hydra, "job_logging.root.handlers", default=[])


@pytest.mark.parametrize("option", [o for o in OPTIONS if o.startswith("tap=")])
def test_presets_plan_forecasts_unless_off(composed, option):
    plan = make_plan(resolve(composed(option)).tap_config, 50)
    assert (StepKind.FORECAST in plan) == (option != "tap=off")


def test_full_schedule_plans_no_forecast(composed):
    assert StepKind.FORECAST not in make_plan(composed("schedule=full").tap_config, 50)


def test_explicit_schedule_spends_as_many_full_steps_as_it_lists(composed):
    config = composed("schedule=explicit")
    assert make_plan(config.tap_config, 50).count(StepKind.FULL) == len(config.schedule.steps) == 14


def test_model_defaults_reach_the_top_level(composed):
    config = composed("model=wan_14b", "steps=30")
    assert (config.height, config.width, config.flow_shift, config.dtype) == (720, 1280, 5.0, "bfloat16")
    assert (config.steps, config.model.steps) == (30, 50)
    assert config.negative_prompt.startswith("色调艳丽")


@pytest.mark.parametrize(
    "text",
    [
        "A cat walks on the grass, realistic",
        "a dog (small), a cat's tail: [50 %] {slow} = fast!",
        'she says "hi" and leaves',
        "ends in a backslash \\",
        "a quote after one \\' here",
        "一只猫，在草地上",  # noqa: RUF001 - a comma that Hydra must not mind
        "plain",
    ],
)
def test_prompts_mean_what_they_say(composed, text):
    """Hydra's grammar has other plans for commas, parentheses and quotes."""
    assert composed(quote_text(f"prompt={text}")).prompt == text


@pytest.mark.parametrize("argument", ["prompt='a, b'", 'prompt="a, b"', "seeds=[0,1]", "-m", "tap=off,paper", "--cfg"])
def test_other_arguments_are_left_alone(argument):
    assert quote_text(argument) == argument
