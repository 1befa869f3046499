"""How sure a mean over clips is: bootstrap intervals, of a method and of the difference between two."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over clips, with the interval that its bootstrap distribution leaves."""

    mean: float
    low: float | None
    """None where there is a single clip (or group of clips): nothing tells how much others would differ."""
    high: float | None
    num_clips: int


def bootstrap_mean(
    values: Sequence[float],
    *,
    groups: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Mean over clips and its percentile bootstrap interval (Efron 1979).

    Clips are drawn with replacement, as many as there are, again and again; the interval is between the quantiles
    `(1 - confidence) / 2` and `(1 + confidence) / 2` of the means. The same values and seed give the same interval.

    Args:
        values: One figure a clip. Infinite PSNRs have no mean: leave identical clips out, and say how many there were.
        groups: What each clip belongs to, e.g. its prompt, where several seeds of it are more alike than clips of
            different prompts: whole groups are then drawn. None draws single clips.
        confidence: Share of the bootstrap means inside the interval.
        num_resamples: Draws.
        seed: Of the draws.

    Raises:
        ValueError: if there is no value, one is not finite, or an argument is out of range.
    """
    clips = _checked(values)
    _check_draws(confidence, num_resamples)
    sums, counts = _by_group(clips, groups)
    mean = float(clips.mean())
    if len(sums) == 1:
        return Estimate(mean, None, None, len(clips))
    draws = np.random.default_rng(seed).integers(len(sums), size=(num_resamples, len(sums)))
    means = sums[draws].sum(axis=1) / counts[draws].sum(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(mean, float(low), float(high), len(clips))


def bootstrap_difference(
    values: Sequence[float],
    rival: Sequence[float],
    *,
    groups: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Mean of `values - rival`, clip by clip, with its interval: `bootstrap_mean` of the differences.

    Paired: what makes a clip hard for both methods cancels, so the interval is of their difference alone.

    Args:
        values: One figure a clip of the method.
        rival: The rival's figures of the same clips, in the same order.
        groups: As in `bootstrap_mean`.
        confidence: As in `bootstrap_mean`.
        num_resamples: As in `bootstrap_mean`.
        seed: As in `bootstrap_mean`.

    Raises:
        ValueError: if the two are not of the same clips, or as in `bootstrap_mean`.
    """
    if len(values) != len(rival):
        raise ValueError(f"{len(values)} clips cannot be paired with {len(rival)}")
    differences = (_checked(values) - _checked(rival)).tolist()
    return bootstrap_mean(differences, groups=groups, confidence=confidence, num_resamples=num_resamples, seed=seed)


def _checked(values: Sequence[float]) -> np.ndarray:
    if not len(values):
        raise ValueError("no values: a mean needs one clip or more")
    bad = [value for value in values if not math.isfinite(value)]
    if bad:
        raise ValueError(f"values {bad[:3]} are not finite; leave such clips out, and say how many there were")
    return np.asarray(values, dtype=np.float64)


def _check_draws(confidence: float, num_resamples: int) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence!r} is no share; allowed: between 0 and 1")
    if num_resamples < 1:
        raise ValueError(f"num_resamples={num_resamples!r} is too small; allowed: 1 or more")


def _by_group(clips: np.ndarray, groups: Sequence[Hashable] | None) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the values and number of clips, of every group."""
    if groups is None:
        return clips, np.ones(len(clips))
    if len(groups) != len(clips):
        raise ValueError(f"{len(groups)} groups for {len(clips)} clips; allowed: one for each clip")
    order = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    members = [order[group] for group in groups]
    return np.bincount(members, weights=clips), np.bincount(members).astype(np.float64)
