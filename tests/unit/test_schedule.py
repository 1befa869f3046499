"""Plans."""

import pytest

from tapvideo.config import ScheduleConfig, TapConfig
from tapvideo.planning import make_plan
from tapvideo.schedule import StepKind, explicit_plan, interval_plan, strip


def full_steps(plan):
    return [i for i, kind in enumerate(plan) if kind is StepKind.FULL]


def test_interval_plan_has_warm_up_beat_and_end():
    plan = interval_plan(20, interval=4, warmup=3, last=2)
    assert full_steps(plan) == [0, 1, 2, 6, 10, 14, 18, 19]
    assert strip(plan) == "###...#...#...#...##"


@pytest.mark.parametrize("steps", [1, 2, 13, 50])
def test_interval_plan_of_one_is_all_full(steps):
    assert full_steps(interval_plan(steps, interval=1, warmup=1, last=0)) == list(range(steps))


def test_interval_plan_copes_with_runs_shorter_than_warm_up_and_end():
    assert full_steps(interval_plan(3, interval=4, warmup=5, last=5)) == [0, 1, 2]


def test_explicit_plan_always_starts_full():
    assert full_steps(explicit_plan(6, steps=[4, 2])) == [0, 2, 4]


def test_explicit_plan_names_steps_outside_the_run():
    with pytest.raises(ValueError, match=r"schedule.steps names \[50\], outside this run; allowed: 0 to 49"):
        explicit_plan(50, steps=[0, 50])


def test_make_plan_leaves_few_step_runs_alone():
    assert StepKind.FORECAST not in make_plan(TapConfig(), 11)
    assert StepKind.FORECAST in make_plan(TapConfig(), 12)


def test_make_plan_of_disabled_tap_is_all_full():
    config = TapConfig(enabled=False, schedule=ScheduleConfig(interval=4))
    assert full_steps(make_plan(config, 50)) == list(range(50))
