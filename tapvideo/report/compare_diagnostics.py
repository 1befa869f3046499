"""Diagnostics of any shape as blocks that a page can show: curves, small tables, lines of text.

Rules, by what a value looks like: a list of numbers is a curve; an object of such lists, or a list of objects of
numbers, is one chart with several curves; an object whose keys are whole numbers is a curve over them; a number or a
short text is a row of a table; `verdict` is said first. `step` or `steps` beside lists is their horizontal axis. An
object of `labels`, `steps`, `grid` and `choice` is a map (`compare_maps.maps_record` makes one).
"""

import math
from dataclasses import dataclass, field
from typing import Any

from tapvideo.report.compare_clips import plain
from tapvideo.report.compare_maps import PredictorMaps, read_maps

_MAX_DEPTH = 4
_MAX_TEXT = 400
_MAX_ROWS = 200
_MAX_SERIES = 24
_AXES = ("step", "steps")
Points = list[tuple[float, float | None]]


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves that share their axes."""

    title: str
    series: dict[str, Points]


@dataclass(slots=True)
class Block:
    """One heading with what belongs to it."""

    title: str
    verdicts: list[str] = field(default_factory=list[str])
    facts: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    charts: list[Chart] = field(default_factory=list[Chart])
    maps: list[PredictorMaps] = field(default_factory=list[PredictorMaps])
    skipped: list[str] = field(default_factory=list[str])
    """What has a shape that nothing here can show."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.verdicts or self.facts or self.charts or self.maps or self.skipped)


@dataclass(slots=True)
class Group:
    """What belongs to one top-level object of the diagnostics, e.g. to one budget; the first group has no title."""

    title: str
    blocks: list[Block]


def diagnostic_groups(diagnostics: dict[str, Any]) -> list[Group]:
    """The groups of a comparison's diagnostics; none where there are none."""
    blocks: list[tuple[str, Block]] = []
    if diagnostics:
        _fill(diagnostics, (), blocks)
    groups: dict[str, list[Block]] = {}
    for name, block in blocks:
        if not block.is_empty:
            groups.setdefault(name, []).append(block)
    return [Group(name, members) for name, members in groups.items()]


def _fill(raw: dict[str, Any], path: tuple[str, ...], blocks: list[tuple[str, Block]]) -> None:
    block = Block(": ".join(path[1:]))
    blocks.append((path[0] if path else "", block))
    axis = next((raw[key] for key in _AXES if key in raw and _numbers(raw[key])), None)
    later: list[tuple[str, dict[str, Any]]] = []
    for key, value in raw.items():
        name = _title(key)
        if key == "verdict":
            block.verdicts += [_text(v) for v in (value if isinstance(value, list) else [value])]
        elif key in _AXES and value is axis:
            continue
        elif (found := read_maps(name, value)) is not None:
            block.maps.append(found)
        elif (series := _series(value, axis)) is not None:
            block.charts.append(Chart(name, series if len(series) > 1 or "" not in series else {name: series[""]}))
        elif isinstance(value, dict) and value and len(path) < _MAX_DEPTH:
            later.append((name, value))
        elif _is_short(value):
            block.facts.append((name, _scalar(value)))
        elif value:
            block.skipped.append(name)
    block.facts, extra = block.facts[:_MAX_ROWS], block.facts[_MAX_ROWS:]
    block.skipped += [name for name, _ in extra]
    for name, value in later:
        _fill(value, (*path, name), blocks)


def _series(value: Any, axis: Any) -> dict[str, Points] | None:
    """Curves by name, or None where the value is no chart; a single curve has no name."""
    if _numbers(value) and len(value) > 1:
        return {"": _points(value, axis)}
    if isinstance(value, dict) and value:
        return _series_of_object(value, axis)
    if isinstance(value, list) and len(value) > 1 and all(isinstance(v, dict) for v in value):
        return _series_of_records(value)
    return None


def _series_of_object(value: dict[str, Any], axis: Any) -> dict[str, Points] | None:
    if all(_whole(key) is not None for key in value) and all(_is_number(v) for v in value.values()):
        pairs = sorted((_whole(key) or 0, v) for key, v in value.items())
        return {"": [(float(x), plain(_float(v))) for x, v in pairs]} if len(pairs) > 1 else None
    own = next((value[key] for key in _AXES if key in value and _numbers(value[key])), axis)
    curves = {k: v for k, v in value.items() if not (k in _AXES and v is own)}
    if not curves or not all(_numbers(v) and len(v) > 1 for v in curves.values()) or len(curves) > _MAX_SERIES:
        return None
    return {_title(k): _points(v, own) for k, v in curves.items()}


def _series_of_records(records: list[dict[str, Any]]) -> dict[str, Points] | None:
    keys = [k for k in records[0] if k not in _AXES]
    axis_key = next((k for k in _AXES if all(_is_number(r.get(k)) for r in records)), None)
    numeric = [k for k in keys if all(r.get(k) is None or _is_number(r[k]) for r in records)]
    if not numeric or len(numeric) > _MAX_SERIES:
        return None
    axis = [r[axis_key] for r in records] if axis_key else None
    return {_title(k): _points([r.get(k) for r in records], axis) for k in numeric}


def _points(values: list[Any], axis: Any) -> Points:
    matches = isinstance(axis, list) and len(axis) == len(values) and all(_is_number(x) for x in axis)
    places = [float(x) for x in axis] if matches else [float(i) for i in range(len(values))]
    return [(x, plain(_float(v))) for x, v in zip(places, values, strict=True)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numbers(value: Any) -> bool:
    is_list = isinstance(value, list) and all(v is None or _is_number(v) for v in value)
    return is_list and any(v is not None for v in value)


def _whole(key: Any) -> int | None:
    text = str(key)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _float(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except OverflowError:
        return None


def _is_short(value: Any) -> bool:
    plain_kinds = str | int | float | bool | None
    return isinstance(value, plain_kinds) or (
        isinstance(value, list) and 0 < len(value) <= 12 and all(isinstance(v, plain_kinds) for v in value)
    )


def _scalar(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_scalar(v) for v in value)
    if value is None:
        return "\u2013"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "not a finite number"
    return _text(value)


def _text(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}\u2026"


def _title(key: Any) -> str:
    text = _text(key).replace("_", " ").strip()
    return text[:1].upper() + text[1:]
