"""Plans."""

from dataclasses import replace
from itertools import pairwise

import pytest

from tapvideo.config import ConfigError, ScheduleConfig, TapConfig
from tapvideo.planning import make_plan, spread_over_experts
from tapvideo.schedule import StepKind, explicit_plan, interval_plan, power_plan, spread_plan, strip


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


def test_power_plan_is_closest_at_the_start():
    """round(20 (i / 6) ** 2.3) for i = 0 .. 5, no two alike."""
    assert full_steps(power_plan(20, count=6)) == [0, 1, 2, 4, 8, 13]
    assert full_steps(power_plan(50, count=1)) == [0]


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 12, 25, 50, 101])
def test_power_plan_has_as_many_full_steps_as_it_is_asked_for(steps):
    for count in range(1, steps + 1):
        full = full_steps(power_plan(steps, count=count))
        assert len(full) == count
        assert full[0] == 0
        gaps = [after - before for before, after in pairwise([*full, steps])]
        assert gaps[0] == min(gaps)
        assert all(after >= before - 1 for before, after in pairwise(gaps))  # ever farther apart, but for rounding
    assert full == list(range(steps))


@pytest.mark.parametrize("count", [0, -1, 13])
def test_power_plan_refuses_what_a_run_does_not_have(count):
    with pytest.raises(ValueError, match=f"schedule.speedup asks for {count} full steps of 12; allowed: 1 to 12"):
        power_plan(12, count=count)


def test_spread_plan_is_a_head_and_gaps_that_grow_evenly():
    """Head of round(14^2 / 50) = 4; gaps 1 + 0.636 j for j = 1 .. 10, which end at step 48."""
    assert strip(spread_plan(50, count=14)) == "####.#.#..#..#...#....#.....#.....#......#......#."
    assert strip(spread_plan(50, count=10)) == "##.#..#...#.....#.....#.......#.......#.........#."
    assert full_steps(spread_plan(50, count=1)) == [0]
    assert full_steps(spread_plan(50, count=2)) == [0, 48]


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 12, 25, 50, 101])
def test_spread_plan_has_as_many_full_steps_as_it_is_asked_for_and_no_gap_shorter_than_the_one_before(steps):
    for count in range(1, steps + 1):
        full = full_steps(spread_plan(steps, count=count))
        assert len(full) == count
        assert full[0] == 0
        gaps = [after - before for before, after in pairwise(full)]
        assert gaps == sorted(gaps)
        if 2 <= count < steps:
            assert full[-1] == steps - 2
    assert full == list(range(steps))


@pytest.mark.parametrize("count", [0, -1, 13])
def test_spread_plan_refuses_what_a_run_does_not_have(count):
    with pytest.raises(ValueError, match=f"schedule.speedup asks for {count} full steps of 12; allowed: 1 to 12"):
        spread_plan(12, count=count)


@pytest.mark.parametrize(
    ("steps", "speedup", "count"), [(50, 2.5, 20), (50, 1, 50), (50, 3, 17), (14, 2.5, 6), (12, 99, 1)]
)
def test_speedup_is_steps_over_full_steps(steps, speedup, count):
    config = ScheduleConfig(kind="spread", speedup=speedup)
    assert config.count(steps) == count
    assert make_plan(TapConfig(schedule=config), steps) == spread_plan(steps, count=count)


@pytest.mark.parametrize("kind", ["spread", "calibrated"])
def test_schedules_by_speedup_take_no_interval(kind):
    assert ScheduleConfig(kind=kind, speedup=2.0, interval=None).speedup == 2.0
    for interval in (4, 5):
        told = f"schedule.interval={interval} is not for schedule={kind}; allowed: schedule.speedup"
        with pytest.raises(ConfigError, match=told):
            ScheduleConfig(kind=kind, speedup=2.0, interval=interval)
    with pytest.raises(ConfigError, match=f"schedule.speedup=null, and schedule.kind={kind} needs it; allowed: 1 or"):
        ScheduleConfig(kind=kind, interval=None)
    for speedup in (0.5, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=f"schedule.speedup={speedup} is "):
            ScheduleConfig(kind=kind, speedup=speedup)


@pytest.mark.parametrize("kind", ["interval", "explicit"])
def test_other_schedules_take_no_speedup(kind):
    with pytest.raises(ConfigError, match=f"schedule.speedup=2.0 is not for schedule={kind}; .* schedule=calibrated"):
        ScheduleConfig(kind=kind, steps=[0, 3], speedup=2.0)


def test_an_interval_that_nobody_has_set_is_the_papers():
    assert (ScheduleConfig().interval, ScheduleConfig(interval=None).interval) == (4, 4)
    assert ScheduleConfig(kind="explicit", steps=[0, 3]).interval is None


@pytest.mark.parametrize(
    ("kind", "key", "value", "allowed"),
    [
        ("calibrated", "last", 2, "1, or schedule=interval"),
        ("spread", "last", 0, "1, or schedule=interval"),
        ("explicit", "last", 2, "1, or schedule=interval"),
        ("interval", "steps", [0, 5], r"\[\], or schedule=explicit"),
        ("spread", "steps", [0, 5], r"\[\], or schedule=explicit"),
        ("explicit", "interval", 4, "schedule.steps, or schedule=interval"),
    ],
)
def test_what_a_schedule_has_no_use_for_is_refused(kind, key, value, allowed):
    needed = {"interval": {}, "explicit": {"steps": [0, 4]}}.get(kind, {"speedup": 2.0})
    ScheduleConfig(kind=kind, **needed)
    with pytest.raises(ConfigError, match=rf"schedule.{key}=.* is not for schedule={kind}; allowed: {allowed}$"):
        ScheduleConfig(kind=kind, **needed, **{key: value})


def test_power_one_is_even():
    plan = power_plan(20, count=5, power=1.0)
    assert [i for i, kind in enumerate(plan) if kind is StepKind.FULL] == [0, 4, 8, 12, 16]


SPREAD = ScheduleConfig(kind="spread", speedup=2.5, interval=None)


@pytest.mark.parametrize("num_steps", [12, 20, 40, 50])
@pytest.mark.parametrize("speedup", [1.0, 1.3, 2.0, 2.5, 3.5])
@pytest.mark.parametrize("share", [0.3, 0.65, 0.9])
def test_two_experts_have_the_full_steps_that_their_speedup_allows(num_steps, speedup, share, caplog):
    """The second one's warm-up is among them, and none is there twice."""
    start, schedule = int(num_steps * share), replace(SPREAD, speedup=speedup)
    found = spread_over_experts(schedule, num_steps, start)
    least = len({0, *range(start, min(start + 3, num_steps))})
    assert found.steps == sorted(set(found.steps))
    assert set(range(start, min(start + 3, num_steps))) <= set(found.steps) <= set(range(num_steps))
    assert len(found.steps) == max(schedule.count(num_steps), least)
    assert bool(caplog.messages) == (schedule.count(num_steps) < least)
    assert spread_over_experts(found, num_steps, start) == found


def test_experts_have_a_spread_whose_widest_gaps_are_halved_for_what_is_left():
    found = spread_over_experts(replace(SPREAD, speedup=2.0, warmup=2), 40, 26)
    assert found.steps == [*range(9), 10, 12, 15, 18, 21, 25, 26, 27, 29, 33, 38]
    assert (found.warmup, found.min_steps) == (2, SPREAD.min_steps)
    steps = spread_over_experts(replace(SPREAD, speedup=3.5), 40, 26).steps
    assert steps == [0, 1, 3, 7, 13, 20, 26, 27, 28, 33, 38]


def test_a_speedup_that_two_experts_cannot_reach_is_told(caplog):
    found = spread_over_experts(replace(SPREAD, speedup=5, warmup=2), 12, 8)
    assert found.steps == [0, 8, 9]
    assert "schedule.speedup=5 allows 2 full steps of 12, and two experts warm up on 3" in caplog.text


@pytest.mark.parametrize(
    ("schedule", "num_steps", "start"),
    [
        (ScheduleConfig(), 50, 20),
        (SPREAD, 50, 0),
        (SPREAD, 50, 50),
        (SPREAD, 8, 4),  # is not accelerated
    ],
)
def test_a_schedule_that_two_experts_do_not_share_is_left_alone(schedule, num_steps, start):
    assert spread_over_experts(schedule, num_steps, start) is schedule
