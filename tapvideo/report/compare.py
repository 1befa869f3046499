"""The page and the plot of a comparison: which method is closest at each budget, what it costs, and how it looks."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tapvideo.compare.results import Comparison, is_bound
from tapvideo.report.compare_answer import Standing, answer, chosen, full_steps, place, standings, tolerance
from tapvideo.report.compare_clips import (
    MAX_BYTES,
    MAX_VIDEOS,
    Videos,
    choose_videos,
    clip_payload,
    pair_info,
    pairs_of,
    plain,
)
from tapvideo.report.compare_diagnostics import Group, diagnostic_groups
from tapvideo.report.compare_frontier import draw_frontier
from tapvideo.report.compare_methods import Method, list_methods
from tapvideo.report.compare_metrics import Metric, budget_text, metrics_of, number, primary
from tapvideo.report.compare_metrics import metric as metric_of
from tapvideo.report.compare_table import columns, rows, table_metrics, troubles
from tapvideo.report.page import render_page
from tapvideo.video_io import atomic_write_text

_SCRIPTS = (
    "player.js", "maps.js", "charts.js", "compare_frontier.js", "compare_table.js", "compare_clips.js",
    "compare_maps.js", "compare.js",
)  # fmt: skip


def write_comparison_report(folder: Path, comparison: Comparison) -> Path:
    """Write `frontier.png` and `report.html` beside the results' videos; both are whole or not there.

    The page carries at most `compare_clips.MAX_VIDEOS` videos of together `compare_clips.MAX_BYTES`, and says how many
    it left out.

    Returns:
        The page.

    Raises:
        OSError: if the folder cannot be written.
    """
    draw_frontier(folder / "frontier.png", comparison, primary(metrics_of(comparison)))
    path = folder / "report.html"
    atomic_write_text(path, render_comparison(folder, comparison))
    return path


def render_comparison(
    folder: Path, comparison: Comparison, *, max_videos: int = MAX_VIDEOS, max_bytes: int = MAX_BYTES
) -> str:
    """The page as text; videos that cannot be read are named in it."""
    methods = list_methods(comparison)
    metrics = metrics_of(comparison, {m.key: m.label for m in methods})
    best = primary(metrics)
    found = standings(comparison, best)
    top = chosen(found)
    budgets = sorted({r.budget for r in [*comparison.table, *comparison.clips] if r.budget is not None})
    budget = top.budget if top else (budgets[0] if budgets else None)
    videos = choose_videos(folder, comparison, budget, max_videos=max_videos, max_bytes=max_bytes)
    shown = table_metrics(metrics, best)
    groups = diagnostic_groups(comparison.diagnostics)
    steps = full_steps(comparison)
    draws = 1 + max((clip.draw for clip in comparison.clips), default=0)
    payload = {
        "budget": budget,
        "budgets": budgets,
        "best": best.key if best else None,
        "steps": plain(steps),
        "chosen": _first_choice(methods, top),
    }
    return render_page(
        "compare.html.j2",
        styles=("base.css", "compare.css"),
        scripts=_SCRIPTS,
        filters={"budget": budget_text, "mebibytes": lambda size: f"{size / 2**20:.1f}"},
        comparison=comparison,
        answer=answer(top, best, steps, draws),
        standings=[(s, place(s, best)) for s in found if best],
        budgets=budgets,
        budget=budget,
        best=best,
        tolerance=f"{100 * tolerance(comparison):g}\u00a0%",
        methods=methods,
        families=_families(comparison, methods),
        choosable=_choosable(comparison, methods),
        columns=columns(shown, best, comparison.table),
        rows=rows(comparison, methods, shown, best),
        pairs=pairs_of(comparison),
        videos=videos,
        max_bytes=max_bytes,
        max_videos=max_videos,
        steps=number(steps, 1).removesuffix(".0"),
        groups=groups,
        open_group=_open_group(groups, budget),
        troubles=troubles(comparison, methods, _metrics_of_clips(comparison, methods)),
        settings=json.dumps(comparison.settings, indent=2, ensure_ascii=False, default=str),
        payload=payload | _payload(folder, comparison, methods, metrics, videos) | _diagnostics_payload(groups),
    )


def _payload(
    folder: Path, comparison: Comparison, methods: list[Method], metrics: list[Metric], videos: Videos
) -> dict[str, Any]:
    """What the script computes with; `tojson` makes it safe inside a script element."""
    index = {m.key: i for i, m in enumerate(methods)}
    infos = [pair_info(folder, comparison, videos, pair) for pair in pairs_of(comparison)]
    return {
        "methods": [
            {"label": m.label, "short": m.short, "mark": m.mark, "reference": m.is_reference, "bound": is_bound(m.key)}
            for m in methods
        ],
        "metrics": [
            {"key": m.key, "label": m.label, "unit": m.unit, "digits": m.digits, "better": m.better} for m in metrics
        ],
        "rows": [
            {
                "method": index[row.method],
                "label": row.label,
                "budget": row.budget,
                "passes": plain(row.full_passes),
                "speedup": plain(row.speedup),
                "clips": row.num_clips,
                **{name: {k: plain(v) for k, v in part.items()} for name, part in _parts(row)},
            }
            for row in comparison.table
        ],
        "pairs": [
            {"prompt": prompt, "seed": seed, "frames": info.frames if info else 0, "fps": info.fps if info else 0,
             "width": info.width if info else 0, "height": info.height if info else 0}
            for (prompt, seed), info in zip(pairs_of(comparison), infos, strict=True)
        ],
        "clips": clip_payload(comparison, methods, videos, [m.key for m in metrics if "@" not in m.key]),
    }  # fmt: skip


def _parts(row: Any) -> list[tuple[str, dict[str, float | None]]]:
    return [("mean", row.mean), ("low", row.low), ("high", row.high)]


def _metrics_of_clips(comparison: Comparison, methods: list[Method]) -> dict[str, Metric]:
    labels = {m.key: m.label for m in methods}
    return {key: metric_of(key, labels) for clip in comparison.clips for key in (*clip.metrics, *clip.not_computed)}


def _families(comparison: Comparison, methods: list[Method]) -> dict[str, list[int]]:
    """Methods of the plot, by family."""
    drawn = {row.method for row in comparison.table if any(v is not None for v in row.mean.values())}
    found: dict[str, list[int]] = {}
    for i, m in enumerate(methods):
        if m.key in drawn and not m.is_reference and not is_bound(m.key):
            found.setdefault(m.family, []).append(i)
    return found


def _choosable(comparison: Comparison, methods: list[Method]) -> list[int]:
    """Methods that have a clip to show beside the un-accelerated one, which is the first method if there is one."""
    made = {clip.method for clip in comparison.clips if clip.status == "ok" and not clip.draw}
    return [i for i, m in enumerate(methods) if m.key in made and not (i == 0 and m.is_reference)]


def _first_choice(methods: list[Method], top: Standing | None) -> list[int]:
    """Which methods' clips are shown first: TAP, the best other one, and fewer plain steps."""
    index = {m.key: i for i, m in enumerate(methods)}
    if top is None:
        return [i for i, m in enumerate(methods) if not m.is_reference][:2]
    keys = [top.ranked[top.tap].method] if top.tap is not None else []
    keys += [next((r.method for r in top.ranked if r.method not in keys), "")]
    keys += [next((r.method for r in top.ranked if r.method.startswith("steps")), "")]
    return [index[key] for key in dict.fromkeys(keys) if key in index]


def _diagnostics_payload(groups: list[Group]) -> dict[str, Any]:
    """Charts and maps, in the order of the page."""
    blocks = [block for group in groups for block in group.blocks]
    charts = [chart.series.items() for block in blocks for chart in block.charts]
    return {
        "charts": [[{"name": name, "points": points} for name, points in series] for series in charts],
        "maps": [asdict(found) for block in blocks for found in block.maps],
    }


def _open_group(groups: list[Group], budget: float | None) -> str:
    """The group of diagnostics that is not folded away: the headline's budget, or else the first that has a title."""
    titles = [group.title for group in groups if group.title]
    asked = f"{budget:g}x" if budget is not None else ""
    return asked if asked in titles else (titles[0] if titles else "")
