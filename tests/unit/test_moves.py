"""Schedules that get better one moved step at a time."""

from collections import Counter

import pytest

from tapvideo.moves import Tried, improve

GOAL = (0, 1, 4, 9, 14)
START = (0, 10, 11, 12, 13)


def far(steps, clip):
    """Smaller the nearer the steps lie to the goal's; clips are of uneven difficulty."""
    return 0.1 * (clip + 1) + sum(abs(a - b) for a, b in zip(steps, GOAL, strict=True))


def begin(score=far, clips=3, steps=START):
    return Tried(steps, tuple(score(steps, clip) for clip in range(clips)))


def test_moves_find_the_best_schedule():
    gains = []
    found = improve(far, begin(), moves=500, num_steps=16, fixed=(0,), on_gain=lambda n, best: gains.append((n, best)))
    assert found.steps == GOAL
    assert found == begin(steps=GOAL)
    assert gains[-1][1] == found
    means = [best.mean for _, best in gains]
    assert means == sorted(means, reverse=True)
    assert [n for n, _ in gains] == sorted({n for n, _ in gains})


def test_the_same_schedule_is_found_again():
    assert improve(far, begin(), moves=40, num_steps=16, fixed=(0,)) == improve(
        far, begin(), moves=40, num_steps=16, fixed=(0,)
    )


def test_fixed_steps_stay_and_the_number_of_full_steps_too():
    seen = []

    def score(steps, clip):
        seen.append(steps)
        return far(steps, clip)

    improve(score, begin(), moves=60, num_steps=16, fixed=(0, 10))
    assert all({0, 10} <= set(steps) and len(set(steps)) == 5 for steps in seen)
    assert all(list(steps) == sorted(steps) and steps[-1] < 16 for steps in seen)
    assert max(Counter(seen).values()) == 3  # clips: none is tried twice
    assert START not in seen


@pytest.mark.parametrize(("moves", "fixed"), [(0, (0,)), (9, START)])
def test_nothing_is_tried_without_a_move(moves, fixed):
    assert improve(lambda *_: pytest.fail("asked"), begin(), moves=moves, num_steps=16, fixed=fixed) == begin()


def test_what_falls_behind_is_dropped_before_all_clips_are_made():
    asked = []

    def worse(steps, clip):
        asked.append(clip)
        return 0.3

    best = Tried(START, (0.0,) * 8)
    assert improve(worse, best, moves=5, num_steps=16, fixed=(0,)) == best
    assert asked == [0, 1] * 5  # 0.6 is more than 4 dB


def test_what_is_better_on_the_mean_but_not_at_first_is_taken():
    best = Tried(START, (0.0,) * 8)
    found = improve(lambda steps, clip: 0.4 if clip == 0 else -0.2, best, moves=1, num_steps=16, fixed=(0,))
    assert found.steps != START
    assert found.mean == pytest.approx((0.4 - 1.4) / 8)


def test_a_gain_within_a_tenth_of_a_decibel_is_none():
    best = Tried(START, (0.0,) * 8)
    assert improve(lambda *_: -0.009, best, moves=20, num_steps=16, fixed=(0,)) == best


def test_it_ends_where_everything_was_tried():
    asked = []
    best = Tried((0, 1), (0.0,))
    improve(lambda steps, clip: asked.append(steps) or 1.0, best, moves=1000, num_steps=5, fixed=(0,))
    assert sorted(asked) == [(0, 2), (0, 3), (0, 4)]
    asked.clear()
    improve(lambda s, _: asked.append(s) or 1.0, best, moves=9, num_steps=5, fixed=(0,), known=[(0, 2), (0, 4)])
    assert asked == [(0, 3)]
    everything = Tried((0, 1, 2), (0.0,))
    assert improve(lambda *_: pytest.fail("asked"), everything, moves=9, num_steps=3, fixed=(0,)) == everything
