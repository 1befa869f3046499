"""Bootstrap intervals against distributions that can be written down."""

import math
import random
import statistics

import numpy as np
import pytest

from tapvideo.compare.statistics import Estimate, bootstrap_difference, bootstrap_mean

DRAWN = np.random.default_rng(0).normal(30, 4, size=200).tolist()


@pytest.mark.parametrize(
    ("confidence", "low", "high"),
    # Two draws from {0, 1} have a mean of 0, 1/2 or 1 with probabilities 1/4, 1/2, 1/4.
    [(0.95, 0.0, 1.0), (0.55, 0.0, 1.0), (0.45, 0.5, 0.5), (0.1, 0.5, 0.5)],
)
def test_interval_of_two_clips_is_known_exactly(confidence, low, high):
    assert bootstrap_mean([0.0, 1.0], confidence=confidence) == Estimate(0.5, low, high, 2)


def test_interval_of_four_clips_follows_the_binomial_distribution():
    # One clip in four is 1: the number of ones in four draws is binomial(4, 1/4), with 0.316, 0.738, 0.949, 0.996
    # as cumulated probabilities of 0 to 3 ones; the quantiles 0.025 and 0.975 are 0 and 3 of them.
    assert bootstrap_mean([1.0, 0.0, 0.0, 0.0]) == Estimate(0.25, 0.0, 0.75, 4)
    # 0.2 and 0.8: none and two
    assert bootstrap_mean([1.0, 0.0, 0.0, 0.0], confidence=0.6) == Estimate(0.25, 0.0, 0.5, 4)


def test_interval_of_many_clips_is_that_of_the_normal_distribution():
    found = bootstrap_mean(DRAWN)
    half = 1.96 * statistics.pstdev(DRAWN) / math.sqrt(len(DRAWN))
    assert found.mean == pytest.approx(statistics.mean(DRAWN))
    assert found.low == pytest.approx(found.mean - half, abs=0.05 * half)
    assert found.high == pytest.approx(found.mean + half, abs=0.05 * half)


def test_interval_is_what_a_plain_loop_finds():
    rng, values = random.Random(1), DRAWN[:12]
    means = sorted(statistics.mean(rng.choices(values, k=12)) for _ in range(4000))
    found = bootstrap_mean(values)
    width = found.high - found.low
    assert found.low == pytest.approx(means[100], abs=0.05 * width)
    assert found.high == pytest.approx(means[3899], abs=0.05 * width)


def test_interval_is_the_same_for_the_same_seed():
    assert bootstrap_mean(DRAWN, seed=3) == bootstrap_mean(DRAWN, seed=3)
    assert bootstrap_mean(DRAWN, seed=3) != bootstrap_mean(DRAWN, seed=4)


def test_interval_moves_with_the_values():
    there, here = bootstrap_mean([value + 100 for value in DRAWN]), bootstrap_mean(DRAWN)
    assert (there.low - 100, there.high - 100) == pytest.approx((here.low, here.high))


def test_one_clip_has_a_mean_and_no_interval():
    assert bootstrap_mean([31.5]) == Estimate(31.5, None, None, 1)
    assert bootstrap_difference([31.5], [30.0]) == Estimate(1.5, None, None, 1)


def test_equal_clips_have_an_interval_of_no_width():
    assert bootstrap_mean([2.0] * 5) == Estimate(2.0, 2.0, 2.0, 5)


def test_groups_are_drawn_whole():
    # Two prompts, two seeds each, alike within a prompt: as sure as two clips, not as four.
    values, prompts = [0.0, 0.0, 1.0, 1.0], ["a cat", "a cat", "a dog", "a dog"]
    assert bootstrap_mean(values, groups=prompts, confidence=0.55) == Estimate(0.5, 0.0, 1.0, 4)
    alone = bootstrap_mean(values, confidence=0.55)
    assert alone.high - alone.low < 1
    assert bootstrap_mean(values, groups=["one prompt"] * 4) == Estimate(0.5, None, None, 4)


def test_groups_of_one_clip_are_clips():
    assert bootstrap_mean(DRAWN, groups=range(len(DRAWN))) == bootstrap_mean(DRAWN)


def test_groups_of_uneven_size_keep_the_weight_of_a_clip():
    # Drawn twice the large group: mean 0; once each: 1/4; twice the small one: 1.
    values, groups = [0.0, 0.0, 0.0, 1.0], ["a", "a", "a", "b"]
    assert bootstrap_mean(values, groups=groups, confidence=0.4) == Estimate(0.25, 0.25, 0.25, 4)
    assert bootstrap_mean(values, groups=groups) == Estimate(0.25, 0.0, 1.0, 4)


def test_difference_is_paired():
    rival = [value - 0.5 for value in DRAWN]  # clips differ by 4 dB among themselves, the methods by 0.5 dB on each
    found = bootstrap_difference(DRAWN, rival)
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))


def test_difference_is_ours_minus_the_rivals():
    found = bootstrap_difference([1.0, 3.0], [0.0, 0.0])
    assert found == Estimate(2.0, 1.0, 3.0, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": []}, "one clip or more"),
        ({"values": [1.0, math.inf]}, r"\[inf\] are not finite"),
        ({"values": [1.0, math.nan]}, "not finite"),
        ({"values": [1.0, 2.0], "groups": ["a"]}, "1 groups for 2 clips"),
        ({"values": [1.0, 2.0], "confidence": 95}, "confidence=95"),
        ({"values": [1.0, 2.0], "num_resamples": 0}, "num_resamples=0"),
    ],
)
def test_bootstrap_refuses_what_has_no_interval(arguments, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_mean(**arguments)


def test_difference_refuses_clips_without_partners():
    with pytest.raises(ValueError, match="2 clips cannot be paired with 1"):
        bootstrap_difference([1.0, 2.0], [1.0])
