"""Maps of predictors among diagnostics: their shape in `results.json`, and how the page carries them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tapvideo.report.data import ChoiceMap
from tapvideo.report.html import packed_bytes
from tapvideo.report.palette import palette

_MAX_LABELS = 256


@dataclass(frozen=True, slots=True)
class PredictorMaps:
    """Which predictor every token chose, on some steps."""

    title: str
    labels: list[str]
    colours: list[str]
    steps: list[int]
    grid: tuple[int, int, int]
    data: str
    """One byte a token, compressed, as base64."""


def maps_record(maps: Sequence[ChoiceMap]) -> dict[str, Any]:
    """Choice maps of one branch as diagnostics hold them: `labels`, `steps`, `grid` and, per step, `choice`.

    Raises:
        ValueError: if there are none, or they differ in size or candidates.
    """
    if len({(m.labels, tuple(m.choice.shape)) for m in maps}) != 1:
        raise ValueError("maps of one record need the same candidates and the same size, and at least one step")
    return {
        "labels": list(maps[0].labels),
        "steps": [m.step for m in maps],
        "grid": list(maps[0].choice.shape),
        "choice": [m.choice.flatten().tolist() for m in maps],
    }


def read_maps(title: str, raw: Any) -> PredictorMaps | None:
    """The maps of a record, or None where it is none or does not fit together."""
    if not isinstance(raw, dict) or not {"labels", "steps", "grid", "choice"} <= set(raw):
        return None
    labels, steps, grid = raw["labels"], raw["steps"], raw["grid"]
    if not (_whole_numbers(steps) and _whole_numbers(grid) and len(grid) == 3 and _texts(labels)):
        return None
    choice = _choices(raw["choice"], (len(steps), grid[0] * grid[1] * grid[2]), len(labels))
    if choice is None:
        return None
    colours = palette(labels)
    return PredictorMaps(
        title=title,
        labels=labels,
        colours=[colours[label] for label in labels],
        steps=steps,
        grid=(grid[0], grid[1], grid[2]),
        data=packed_bytes(choice),
    )


def _choices(raw: Any, shape: tuple[int, int], num_labels: int) -> np.ndarray | None:
    try:
        choice = np.array(raw)
    except ValueError:  # rows of different lengths
        return None
    if choice.shape != shape or not choice.size or choice.dtype.kind not in "iu":
        return None
    return choice if choice.min() >= 0 and choice.max() < num_labels else None


def _whole_numbers(values: Any) -> bool:
    whole = isinstance(values, list) and all(isinstance(v, int) and not isinstance(v, bool) for v in values)
    return whole and all(0 <= v < 2**31 for v in values) and bool(values)


def _texts(values: Any) -> bool:
    return isinstance(values, list) and 0 < len(values) <= _MAX_LABELS and all(isinstance(v, str) for v in values)
