"""The results as one HTML file that needs no network."""

from pathlib import Path

from tapvideo.report.page import render_page
from tapvideo.vbench.results import Results, count, estimate, percent, totals
from tapvideo.video_io import atomic_write_text


def write_page(path: Path, results: Results) -> None:
    """Write the page, whole or not at all."""
    atomic_write_text(path, render_html(results))


def render_html(results: Results) -> str:
    """The page as text."""
    normalised = results.summary.normalised if results.summary else {}
    rows = [
        {
            "label": row.label,
            "mean": estimate(row.mean, row.low, row.high),
            "normalised": percent(normalised.get(row.name)),
            "baseline": percent(row.baseline),
            "change": estimate(row.change, row.change_low, row.change_high, sign="+"),
            "count": count(row),
        }
        for row in results.rows
    ]
    return render_page(
        "scores.html.j2",
        styles=("base.css", "scores.css"),
        scripts=(),
        results=results,
        rows=rows,
        totals=totals(results),
        facts={name: str(value) for name, value in {**results.settings, **results.versions}.items()},
        missing=results.problems,
    )
