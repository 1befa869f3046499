"""Landing on a budget: knobs against functions whose answer is known."""

import pytest

from tapvideo.compare.methods import Knob, Variant
from tapvideo.compare.own import intervals
from tapvideo.compare.tuning import land


def test_continuous_knob_lands_within_half_the_tolerance():
    asked = []

    def passes(settings):
        asked.append(settings["threshold"])
        return 50 / (1 + settings["threshold"])

    found = land(Variant({"a": 1}, Knob("threshold", low=1e-3, high=10.0)), 20.0, 0.05, passes)
    assert found.full_passes == pytest.approx(20, rel=0.025)
    assert found.settings["threshold"] == pytest.approx(1.5, rel=0.05)
    assert found.settings["a"] == 1
    assert len(asked) <= 9


def test_rising_continuous_knob_is_searched_the_other_way():
    found = land(Variant({}, Knob("x", low=1.0, high=100.0, rising=True)), 20.0, 0.05, lambda s: s["x"])
    assert found.full_passes == pytest.approx(20, rel=0.025)


@pytest.mark.parametrize("target", [1, 7, 20, 50])
@pytest.mark.parametrize("rising", [True, False])
def test_whole_numbered_knob_finds_the_nearest_value(target, rising):
    values = tuple(range(1, 51))

    def passes(settings):
        return settings["n"] if rising else 51 - settings["n"]

    found = land(Variant({}, Knob("n", values=values, rising=rising)), target + 0.2, 0.05, passes)
    assert found.full_passes == target


def test_steps_in_a_knob_come_as_near_as_they_can():
    found = land(Variant({}, Knob("x", low=1e-3, high=10.0)), 20.0, 0.05, lambda s: 30.0 if s["x"] < 1 else 16.0)
    assert found.full_passes == 16.0


def test_prediction_takes_the_place_of_runs():
    variant = Variant({}, Knob("n", values=(1, 2, 3), rising=True), predict=lambda settings: settings["n"])
    assert land(variant, 2.1, 0.05, lambda settings: pytest.fail("ran")).settings == {"n": 2}


def test_intervals_begin_at_the_speed_asked_for():
    assert intervals(50, 25.0) == [2, 3, 4]
    assert intervals(50, 50 / 3.5) == [4, 5, 6]
    assert intervals(50, 10.0) == [5, 6, 7]
