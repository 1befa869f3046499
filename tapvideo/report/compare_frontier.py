"""`frontier.png`: quality against full passes and against speedup, for a README or a slide."""

import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from tapvideo.compare.results import Comparison, MethodSummary, is_bound, ours
from tapvideo.report.compare_answer import full_steps
from tapvideo.report.compare_methods import Method, list_methods
from tapvideo.report.compare_metrics import Metric
from tapvideo.video_io import atomic_path

MARKS = ("o", "s", "^", "D", "v", "P", "X", "p")
_INK, _MUTED, _LINE = "#13191d", "#56646d", "#dfe5e8"
_DODGE, _MOST_DODGE = 0.009, 0.09  # points of one budget stand beside each other: so far apart, so far in all
_LINES = 0.21  # inches of a line of the legend
_MAX_LABEL = 40


def draw_frontier(path: Path, comparison: Comparison, metric: Metric | None) -> None:
    """Write the plot; without a figure to show it says so."""
    methods = [m for m in list_methods(comparison) if not m.is_reference and not is_bound(m.key)]
    drawn = [m for m in methods if metric and _rows(comparison, m, metric, "full_passes", "speedup")]
    lines = len(drawn) + len({m.family for m in drawn}) + 2
    figure = Figure(figsize=(12.4, max(5.6, _LINES * lines)), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    if metric is None or not drawn:
        figure.text(0.5, 0.5, "No method has a figure to draw.", ha="center", color=_MUTED)
    else:
        left, right = figure.subplots(1, 2, sharey=True)
        _panel(left, comparison, drawn, metric, "full_passes")
        _panel(right, comparison, drawn, metric, "speedup")
        unit = f" ({metric.unit})" if metric.unit else ""
        left.set_ylabel(f"{metric.label}{unit} to the un-accelerated video", color=_INK, parse_math=False)
        right.tick_params(labelleft=False)
        _legend(figure, drawn)
        figure.suptitle(_clipped(comparison.title, 110), x=0.01, ha="left", size=12, weight="bold", parse_math=False)
    with atomic_path(path) as temp:
        figure.savefig(temp, format="png")


def _rows(comparison: Comparison, method: Method, metric: Metric, *axes: str) -> list[MethodSummary]:
    """A method's rows that have a value on any of the axes."""
    rows = [r for r in comparison.table if r.method == method.key and _finite(r.mean.get(metric.key))]
    return [r for r in rows if any((getattr(r, axis) or 0) > 0 for axis in axes)]


def _panel(axes: Axes, comparison: Comparison, methods: Sequence[Method], metric: Metric, axis: str) -> None:
    places: list[float] = []
    own, apart = ours(m.key for m in methods), min(_DODGE, _MOST_DODGE / len(methods))
    for i, method in enumerate(methods):
        rows = sorted(_rows(comparison, method, metric, axis), key=lambda r: getattr(r, axis))
        shift = math.exp(apart * (i - (len(methods) - 1) / 2)) if axis == "full_passes" else 1.0
        x = [getattr(r, axis) * shift for r in rows]
        y = [_float(r.mean[metric.key]) for r in rows]
        places += x
        axes.errorbar(
            x, y, yerr=_arms(rows, metric), color=method.on_light, marker=MARKS[method.mark], markersize=6,
            markeredgecolor="white", markeredgewidth=0.6, linewidth=3.0 if method.key == own else 1.2, elinewidth=1,
            capsize=0, zorder=4 if method.key == own else 3,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.grid(color=_LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_MUTED)
    if metric.better in ("lower", "zero"):
        axes.invert_yaxis()
    _ticks(axes, comparison, places, axis)


def _ticks(axes: Axes, comparison: Comparison, places: list[float], axis: str) -> None:
    axes.xaxis.set_minor_locator(NullLocator())
    steps = full_steps(comparison)
    budgets = sorted({r.budget for r in comparison.table if r.budget})
    if axis == "full_passes":
        axes.invert_xaxis()  # faster is to the right in both panels
        of = f", of {steps:g}" if steps else ""
        axes.set_xlabel(f"full-pass equivalents{of}  (fewer to the right)", color=_INK)
        ticks = _apart([steps / b for b in budgets] if steps else sorted(places), 1.12)
    else:
        axes.set_xlabel("measured speedup of denoising", color=_INK)
        ticks = _apart([s for s in _SPEEDUPS if places and min(places) / 1.1 <= s <= max(places) * 1.1], 1.12)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    suffix = "" if axis == "full_passes" else "\u00d7"
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}{suffix}"))


_SPEEDUPS = (0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100)


def _apart(ticks: Sequence[float], factor: float) -> list[float]:
    """The ticks, less those whose labels would touch the one before."""
    kept: list[float] = []
    for tick in sorted(ticks):
        if not kept or tick / kept[-1] >= factor:
            kept.append(tick)
    return kept


def _arms(rows: Sequence[MethodSummary], metric: Metric) -> Any:
    def arm(row: MethodSummary, end: float | None) -> float:
        return abs(_float(row.mean[metric.key]) - end) if end is not None and math.isfinite(end) else 0.0

    return [[arm(r, part(r).get(metric.key)) for r in rows] for part in (lambda r: r.low, lambda r: r.high)]


def _legend(figure: Figure, methods: Sequence[Method]) -> None:
    handles: list[Line2D] = []
    labels: list[str] = []
    headings: list[int] = []
    for family, members in groupby(methods, key=lambda m: m.family):
        headings.append(len(labels))
        handles.append(Line2D([], [], linestyle="none"))
        labels.append(family)
        for m in members:
            style = {"marker": MARKS[m.mark], "markeredgecolor": "white", "markersize": 7}
            handles.append(Line2D([], [], color=m.on_light, linewidth=1.4, **style))
            labels.append(_clipped(m.short.lstrip("_"), _MAX_LABEL) or m.key)
    legend = figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9, labelcolor=_INK)
    for i, text in enumerate(legend.get_texts()):
        text.set_parse_math(False)
        if i in headings:
            text.set(weight="bold", color=_MUTED)


def _clipped(text: str, length: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1]}\u2026"


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _float(value: float | None) -> float:
    assert value is not None
    return value
