import numpy as np
import pytest

from tapvideo.checks import check_types
from tapvideo.config import ConfigError, ForecastConfig, GenerateConfig, RecomputeConfig, ScheduleConfig, TapConfig
from tapvideo.parallel.config import ParallelConfig


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("+stepz=3", "stepz"),
        ("+tap.order=1", "order"),
        ("+model.size=3", "size"),
        ("steps=abc", "steps"),
        ("steps=1.5", "steps"),
        ("seeds=[a]", "seeds"),
        ("compile=perhaps", "compile"),
        ("guidance=[1]", "guidance"),
        ("tap.orders=2", "orders"),
        ("steps=0", "steps=0"),
        ("height=-16", "height=-16"),
        ("guidance=-1", "guidance"),
        ("flow_shift=0", "flow_shift"),
        ("quality=52", "quality=52"),
        ("scheduler=ddim", "scheduler='ddim'"),
        ("dtype=int8", "dtype='int8'"),
        ("offload=disk", "offload='disk'"),
        ("seeds=[]", "seeds"),
        ("seeds=[1,1]", "seeds"),
        ("seeds=[-1]", "seeds"),
        ("seeds=[9223372036854775808]", "seeds"),
        ("tap.family=newton", "tap.family"),
        ("tap.proxy=l1", "tap.proxy"),
        ("tap.choice=block", "tap.choice"),
        ("tap.orders=[0,3]", "tap.anchors=3"),
        ("tap.spacing=0", "tap.spacing"),
        (
            "tap.probe_depth=2",
            "not for tap.probe=modulated; allowed: tap.probe=block_output or",
        ),
        ("schedule.kind=random", "schedule.kind"),
        ("schedule.interval=0", "schedule.interval"),
        ("schedule.warmup=0", "schedule.warmup"),
    ],
)
def test_from_hydra_refuses(composed, override, key):
    with pytest.raises(ConfigError) as error:
        composed(override)
    assert key in str(error.value)
    assert "\n" not in str(error.value)


def test_from_hydra_resolves_interpolations(composed):
    config = composed("model.steps=20", "guidance=3")
    assert (config.steps, config.guidance) == (20, 3.0)


def test_tap_config_joins_forecast_and_schedule():
    config = GenerateConfig(tap=ForecastConfig(proxy="l2"), schedule=ScheduleConfig(interval=7))
    assert (config.tap_config.proxy, config.tap_config.schedule.interval) == ("l2", 7)


def test_as_dict_is_plain_and_whole(composed):
    plain = composed().as_dict()
    assert plain["tap"]["orders"] == [0, 1, 2]
    assert plain["schedule"]["interval"] == 4
    assert plain["steps"] == 50


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value):
    for make, key in (
        (lambda: GenerateConfig(flow_shift=value), "flow_shift"),
        (lambda: ForecastConfig(lookback=value), "tap.lookback"),
    ):
        with pytest.raises(ConfigError, match=key):
            make()


def test_more_candidates_than_a_byte_counts_are_refused():
    with pytest.raises(ConfigError, match="543 candidates; allowed: up to 127"):
        ForecastConfig(lookback=9.0, spacing=0.05)
    ForecastConfig(lookback=9.0, spacing=0.25)


@pytest.mark.parametrize(
    ("config", "key", "value", "told"),
    [
        (ScheduleConfig(), "warmup", 2.5, "schedule.warmup=2.5 is of another type; allowed: a whole number"),
        (ScheduleConfig(), "interval", True, "schedule.interval=True is of another type; allowed: a whole number or"),
        (ScheduleConfig(), "steps", (0, 1), "schedule.steps=(0, 1) is of another type; allowed: a list, each"),
        (ForecastConfig(), "orders", ["1"], "tap.orders=['1'] is of another type"),
        (ForecastConfig(), "family", None, "tap.family=None is of another type; allowed: a string"),
        (ForecastConfig(), "maps", 1, "tap.maps=1 is of another type; allowed: True or False"),
        (TapConfig(), "schedule", "spread", "tap.schedule='spread' is of another type; allowed: a ScheduleConfig"),
        (RecomputeConfig(), "budget", "0.1", "tap.recompute.budget='0.1' is of another type; allowed: a number"),
        (ParallelConfig(), "sp", "2", "parallel.sp='2' is of another type; allowed: a whole number"),
    ],
)
def test_types_are_checked_in_python_too(config, key, value, told):
    setattr(config, key, value)  # beartype would not let it through a constructor, in tests
    with pytest.raises(ConfigError) as error:
        config.__post_init__()
    assert str(error.value).startswith(told)


def test_a_whole_number_is_a_number():
    assert ForecastConfig(lookback=4, blend=1).blend == 1
    config = ScheduleConfig()
    config.warmup, config.steps = np.int64(2), list(np.array([0, 1]))
    check_types("schedule", config)
