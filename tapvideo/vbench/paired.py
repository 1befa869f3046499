"""Means over clips, of one folder and of one against another, with bootstrap intervals over prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tapvideo.compare.statistics import Estimate, bootstrap_difference, bootstrap_mean

Key = tuple[str, int]
"""Prompt and seed of a clip."""
Values = Mapping[Key, Sequence[float]]
"""Figures of clips: none, one, or several where a clip is asked several things."""


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that is measured: its mean, the baseline's, and the mean difference clip by clip."""

    name: str
    label: str
    mean: float | None
    """None where no clip has a figure."""
    low: float | None
    """Ends of the 95 % interval over prompts; None where there is a single prompt."""
    high: float | None
    count: int
    """Figures in the mean."""
    expected: int
    """How many there should be."""
    baseline: float | None = None
    change: float | None = None
    """Videos minus baseline, over clips where both have figures; negative is a drop."""
    change_low: float | None = None
    change_high: float | None = None
    pairs: int = 0
    """Figures in the difference."""


def make_row(name: str, label: str, videos: Values, baseline: Values | None, *, expected: int) -> Row:
    """A row of the table.

    Args:
        name: what is measured.
        label: what a reader calls it.
        videos: figures of the videos.
        baseline: figures of the baseline; None where there is none.
        expected: figures that the videos should have.
    """
    values, prompts = _flat(videos, list(videos))
    mean = _estimate(values, prompts)
    theirs = change = None
    pairs = 0
    if baseline is not None:
        theirs = _estimate(*_flat(baseline, list(baseline)))
        both = [key for key in videos if len(videos[key]) == len(baseline.get(key, ())) > 0]
        ours, groups = _flat(videos, both)
        change = bootstrap_difference(ours, _flat(baseline, both)[0], groups=groups) if ours else None
        pairs = len(ours)
    return Row(
        name=name,
        label=label,
        mean=mean.mean if mean else None,
        low=mean.low if mean else None,
        high=mean.high if mean else None,
        count=len(values),
        expected=expected,
        baseline=theirs.mean if theirs else None,
        change=change.mean if change else None,
        change_low=change.low if change else None,
        change_high=change.high if change else None,
        pairs=pairs,
    )


def _flat(values: Values, keys: list[Key]) -> tuple[list[float], list[str]]:
    found = [(value, key[0]) for key in keys for value in values[key]]
    return [value for value, _ in found], [prompt for _, prompt in found]


def _estimate(values: list[float], prompts: list[str]) -> Estimate | None:
    return bootstrap_mean(values, groups=prompts) if values else None
