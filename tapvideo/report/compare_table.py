"""The table of a comparison: its columns, its rows, and what of it failed or was not run."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from tapvideo.compare.results import ClipResult, Comparison, MethodSummary
from tapvideo.compare.robust import BEHIND, SIMPLE
from tapvideo.report.compare_answer import over_budget
from tapvideo.report.compare_methods import Method
from tapvideo.report.compare_metrics import Metric, budget_text, number, sentence_case

_IDENTICAL = "infinite:"  # how the reason of a PSNR of equal clips begins


@dataclass(frozen=True, slots=True)
class Column:
    """One column; `descending` is the way that a first click sorts."""

    key: str
    label: str
    unit: str
    hint: str
    descending: bool


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell: its text, a second small line, and what it is sorted by; None sorts last."""

    text: str
    sort: float | str | None
    small: str = ""
    bar: tuple[float, float, float] | None = None
    """Low, mean and high as shares of the column's range."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row; `method` is the index among the page's methods."""

    method: int
    label: str
    budget: float | None
    note: str
    flag: str
    cells: list[Cell]


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that has no figures, and why; the same reason is said once."""

    subject: str
    where: list[str]
    note: str


@dataclass(frozen=True, slots=True)
class Troubles:
    """All that is missing from a comparison."""

    not_run: list[Trouble] = field(default_factory=list[Trouble])
    failed: list[Trouble] = field(default_factory=list[Trouble])
    not_computed: list[Trouble] = field(default_factory=list[Trouble])


def table_metrics(metrics: list[Metric], best: Metric | None) -> list[Metric]:
    """The metrics that get a column: to other references only the one that methods are ranked by, for the room."""
    return [m for m in metrics if "@" not in m.key or (best and m.key.startswith(f"{best.key}@"))]


def columns(metrics: list[Metric], best: Metric | None, table: list[MethodSummary]) -> list[Column]:
    """The columns after the method's name; those of robustness where a row has a figure."""
    arrows = {"higher": "higher is better", "lower": "lower is better", "zero": "nearer zero is better", None: ""}
    found = [Column("budget", "Budget", "", "asked acceleration: steps over full-pass equivalents", False)]
    cost = [
        *(column for column, values in _robustness(table) if any(value is not None for value in values)),
        Column("passes", "Full passes", "", "full-pass equivalents per guidance branch, by FLOPs", False),
        Column("speedup", "Speedup", "", "denoising seconds, un-accelerated over accelerated", True),
    ]
    for m in _ordered(metrics, best):
        found.append(Column(m.key, m.label, m.unit, arrows[m.better], m.better in ("higher", None)))
        if m is best:
            found += [Column("worst", f"Worst {m.label}", m.unit, "the worst clip", m.better == "higher"), *cost]
    clips = Column("clips", "Clips", "", "clips measured, with further draws", True)
    return [*found, *([] if best else cost), clips]


def _robustness(table: list[MethodSummary]) -> list[tuple[Column, list[float | None]]]:
    """Columns that not every comparison has, each with its figures of all rows."""
    simple = f"clips over {BEHIND:g} dB of PSNR below the better of {' and '.join(SIMPLE)}"
    spread = "standard deviation of one clip's PSNR over draws that differ by a nudge of the noise"
    return [
        (Column("behind", "Behind", "", simple, False), [row.behind for row in table]),
        (Column("chance", "Chance", "dB", spread, False), [row.chance for row in table]),
    ]


def _ordered(metrics: list[Metric], best: Metric | None) -> list[Metric]:
    """The metric that methods are ranked by comes first: a phone shows few columns."""
    return sorted(metrics, key=lambda m: m is not best)


def rows(comparison: Comparison, methods: list[Method], metrics: list[Metric], best: Metric | None) -> list[Row]:
    """Every row of the table: references first, then budget by budget, the best first."""
    index = {m.key: i for i, m in enumerate(methods)}
    spans = {m.key: _span(comparison.table, m) for m in metrics if m is best}
    identical = _identical(comparison)

    robust = [
        [Cell(number(value, 0 if column.key == "behind" else 2), value) for value in values]
        for column, values in _robustness(comparison.table)
        if any(value is not None for value in values)
    ]

    def rank(row: MethodSummary) -> tuple[float, float]:
        value = row.mean.get(best.key) if best else None
        poor = value is None or math.isnan(value)
        return row.budget or 0.0, math.inf if poor or best is None or value is None else -best.goodness(value)

    return [
        Row(
            method=index[row.method],
            label=sentence_case(row.label),
            budget=row.budget,
            note=row.note,
            flag="over budget" if over_budget(comparison, row) else "",
            cells=_cells(row, metrics, best, spans, identical, [values[i] for values in robust]),
        )
        for i, row in sorted(enumerate(comparison.table), key=lambda pair: rank(pair[1]))
    ]


def _cells(
    row: MethodSummary,
    metrics: list[Metric],
    best: Metric | None,
    spans: dict[str, tuple[float, float] | None],
    identical: set[tuple[str, float | None, str]],
    robust: list[Cell],
) -> list[Cell]:
    cost = [
        *robust,
        Cell(number(row.full_passes, 1), row.full_passes),
        Cell(f"{row.speedup:.2f}\u00d7" if row.speedup is not None else "\u2013", row.speedup),
    ]
    cells = [Cell(budget_text(row.budget), row.budget)]
    for m in _ordered(metrics, best):
        value, low, high = row.mean.get(m.key), row.low.get(m.key), row.high.get(m.key)
        if value is None and (row.method, row.budget, m.key) in identical:
            value = math.inf
        small = f"{m.text(low)} to {m.text(high)}" if low is not None and high is not None else ""
        cells.append(Cell(m.text(value), _sortable(value), small, _bar(spans.get(m.key), low, value, high)))
        if m is best:
            worst = row.worst.get(m.key)
            cells += [Cell(m.text(worst), _sortable(worst)), *cost]
    failed = f"{row.num_failed} failed" if row.num_failed else ""
    return [*cells, *([] if best else cost), Cell(str(row.num_clips), row.num_clips, failed)]


def _identical(comparison: Comparison) -> set[tuple[str, float | None, str]]:
    """Method, budget and metric of rows whose every clip equals its reference: infinitely near, not unknown."""
    reasons: dict[tuple[str, float | None, str], set[bool]] = {}
    for clip in comparison.clips:
        for key in clip.metrics if clip.status == "ok" else ():
            equal = clip.not_computed.get(key, "").startswith(_IDENTICAL)
            reasons.setdefault((clip.method, clip.budget, key), set()).add(equal)
    return {place for place, found in reasons.items() if found == {True}}


def _sortable(value: float | None) -> float | str | None:
    if value is None or math.isnan(value):
        return None
    return value if math.isfinite(value) else ("Infinity" if value > 0 else "-Infinity")  # as JavaScript says it


def _span(table: list[MethodSummary], metric: Metric) -> tuple[float, float] | None:
    """The range of a metric and its intervals over all rows."""
    values = [part.get(metric.key) for row in table for part in (row.low, row.mean, row.high)]
    finite = [v for v in values if v is not None and math.isfinite(v)]
    return (min(finite), max(finite)) if finite and min(finite) < max(finite) else None


def _bar(
    span: tuple[float, float] | None, low: float | None, mean: float | None, high: float | None
) -> tuple[float, float, float] | None:
    if span is None or mean is None or not math.isfinite(mean):
        return None
    ends = [v if v is not None and math.isfinite(v) else mean for v in (low, mean, high)]
    first, middle, last = ((v - span[0]) / (span[1] - span[0]) for v in ends)
    return first, middle, last


def troubles(comparison: Comparison, methods: list[Method], metrics: dict[str, Metric]) -> Troubles:
    """What failed, was not run or was not computed."""
    labels = {m.key: m.label for m in methods}
    not_run = [(labels[c.method], budget_text(c.budget), c.note) for c in comparison.clips if c.status == "not_run"]
    has_clips = {(c.method, c.budget) for c in comparison.clips}
    not_run += [  # a method may have a row that says why it has no clips
        (row.label, budget_text(row.budget), row.note)
        for row in comparison.table
        if not row.num_clips and row.note and (row.method, row.budget) not in has_clips
    ]
    failed = [
        (labels[c.method], _clip_name(c), c.note or f"status {c.status!r}")
        for c in comparison.clips
        if c.status not in ("ok", "not_run")
    ]
    missing = [
        (metrics[key].label if key in metrics else key, "", why)
        for c in comparison.clips
        for key, why in c.not_computed.items()
        if not why.startswith(_IDENTICAL)
    ]
    return Troubles(_grouped(not_run), _grouped(failed), _grouped(missing))


def _clip_name(clip: ClipResult) -> str:
    seed = f"seed {clip.seed}" + (f", draw {clip.draw}" if clip.draw else "")
    return f"{budget_text(clip.budget)}, {seed}: {clip.prompt}"


def _grouped(found: Iterable[tuple[str, str, str]]) -> list[Trouble]:
    groups: dict[tuple[str, str], list[str]] = {}
    for subject, where, note in found:
        places = groups.setdefault((subject, note), [])
        if where and where not in places:
            places.append(where)
    return [Trouble(subject, places, note or "no reason was given") for (subject, note), places in groups.items()]
