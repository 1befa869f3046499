"""The methods of a comparison: their order, family, colours and marks, the same in every plot and list."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tapvideo.compare.results import ClipResult, Comparison
from tapvideo.report.compare_metrics import sentence_case
from tapvideo.report.palette import RAMPS, mix

NUM_MARKS = 8
_FAMILIES = (  # beginnings of a method's key, what the family is called, its ramp of the palette
    (("steps",), "Fewer plain steps", 0),
    (("tap",), "tapvideo", 1),
    (("diffusers",), "diffusers", 2),
    (("cache-dit", "cache_dit"), "cache-dit", 3),
    (("rule", "teacache", "easycache"), "Skipping rules", 4),
    (("oracle",), "Bounds", 0),
)
_OTHER = "Other"
_OTHER_RAMP = ("#8a5a00", "#ecd08a")
_REFERENCE = "References"
# Lines must stand out from a white and from a nearly black page: each takes its own part of the ramps.
_ON_LIGHT, _ON_DARK = (0.0, 0.55), (0.45, 1.0)


@dataclass(frozen=True, slots=True)
class Method:
    """One method, and how it is drawn."""

    key: str
    label: str
    short: str
    """The label without the family's version, where that still tells it from the others."""
    family: str
    on_light: str
    """Colour on a light page."""
    on_dark: str
    """Colour on a dark page."""
    mark: int
    """Shape of its points, 0 to NUM_MARKS - 1."""
    is_reference: bool
    """Made without a budget: the un-accelerated clips, and other references."""


def list_methods(comparison: Comparison) -> list[Method]:
    """Every method that has a clip or a row: references first, then family by family."""
    labels = {row.method: row.label for row in reversed(comparison.table)}
    keys = list(dict.fromkeys([*(row.method for row in comparison.table), *(c.method for c in comparison.clips)]))
    references = set(reference_keys(comparison))
    members: dict[str, list[str]] = {_REFERENCE: []}
    for name in (*(family for _, family, _ in _FAMILIES), _OTHER):
        members[name] = [k for k in keys if k not in references and _family(k)[0] == name]
    members[_REFERENCE] = [k for k in reference_keys(comparison) if k in keys]
    short = _short_labels({key: labels.get(key, key) for key in keys})
    return [
        _method(key, labels.get(key, key), short[key], family, i, len(group))
        for family, group in members.items()
        for i, key in enumerate(group)
    ]


def reference_keys(comparison: Comparison) -> list[str]:
    """Keys of the references, the un-accelerated one first.

    It is the one that no `METRIC@REFERENCE` names: those are of the other references.
    """
    rows = [*comparison.table, *comparison.clips]
    budgeted = {row.method for row in rows if row.budget is not None}
    found = list(dict.fromkeys(row.method for row in rows if row.budget is None and row.method not in budgeted))
    named = {key.partition("@")[2] for row in _metric_keys(comparison) for key in row}
    unit = {row.method for row in rows if row.speedup is not None and abs(row.speedup - 1) < 1e-6}
    return sorted((k for k in found if _was_made(comparison, k)), key=lambda k: (k in named, k not in unit))


def _metric_keys(comparison: Comparison) -> Iterable[Iterable[str]]:
    yield from (row.mean for row in comparison.table)
    yield from (clip.metrics for clip in comparison.clips)


def _was_made(comparison: Comparison, key: str) -> bool:
    """Whether it is a reference indeed: a method that never ran has no budget either."""
    clips: list[ClipResult] = [c for c in comparison.clips if c.method == key]
    return not clips or any(c.status == "ok" for c in clips)


def _family(key: str) -> tuple[str, tuple[str, str]]:
    for beginnings, family, ramp in _FAMILIES:
        if key.lower().startswith(beginnings):
            return family, RAMPS[ramp]
    return _OTHER, _OTHER_RAMP


def _short_labels(labels: dict[str, str]) -> dict[str, str]:
    bare = {key: re.sub(r" \([^()]*\)$", "", label) or label for key, label in labels.items()}
    count = Counter(bare.values())
    return {key: sentence_case(text if count[text] == 1 else labels[key]) for key, text in bare.items()}


def _method(key: str, label: str, short: str, family: str, index: int, count: int) -> Method:
    if family == _REFERENCE:
        return Method(key, label, short, family, mix("#13191d", "#8b959c", index / max(count, 1)),
                      mix("#e8edef", "#8b959c", index / max(count, 1)), index % NUM_MARKS, True)  # fmt: skip
    dark, light = _family(key)[1]
    if dark == RAMPS[0][0]:
        dark = "#5f6b73"  # grey needs more ink than the hues to be seen
    share = index / max(count - 1, 1)
    on_light, on_dark = (mix(dark, light, low + (high - low) * share) for low, high in (_ON_LIGHT, _ON_DARK))
    return Method(key, label, short, family, on_light, on_dark, index % NUM_MARKS, False)
