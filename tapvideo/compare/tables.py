"""From clips to the table, the paired differences, results.json and results.csv."""

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from tapvideo.compare.results import ClipResult, Comparison, MethodSummary, PairedDifference, ours
from tapvideo.compare.robust import BEHIND, SIMPLE
from tapvideo.compare.statistics import bootstrap_difference, bootstrap_mean
from tapvideo.metrics import METRICS
from tapvideo.video_io import atomic_write_text

_CSV_HEAD = (
    "method",
    "budget",
    "prompt",
    "seed",
    "draw",
    "status",
    "note",
    "full_passes",
    "denoise_seconds",
    "speedup",
    "video",
)
_HEAD = (
    f"{'method':<44}{'passes':>7}{'faster':>8}  {'PSNR [95 %]':<22}{'worst':>6}{'behind':>8}{'chance':>8}  {'SSIM':>6}"
)


def summarise(method: str, label: str, budget: float | None, clips: list[ClipResult], note: str) -> MethodSummary:
    """One row of the table."""
    good = [clip for clip in clips if clip.status == "ok"]
    row = MethodSummary(
        method=method,
        label=label,
        budget=budget,
        num_clips=len(good),
        num_failed=sum(clip.status == "failed" for clip in clips),
        full_passes=_mean(clip.full_passes for clip in good),
        speedup=_speedup(good),
        mean={},
        low={},
        high={},
        worst={},
        note="; ".join(
            dict.fromkeys(said for said in (*(clip.note for clip in clips[:1]), *_failures(clips), note) if said)
        ),
    )
    for metric in dict.fromkeys(name for clip in good for name in clip.metrics):
        having = [clip for clip in good if metric in clip.metrics]  # further draws have no other references
        values = [value for clip in having if (value := clip.metrics[metric]) is not None]
        row.mean[metric] = row.low[metric] = row.high[metric] = row.worst[metric] = None
        if values:
            row.worst[metric] = (min if _higher_is_better(metric) else max)(values)
        if len(values) == len(having):  # a mean over some of the clips would be of other clips than its neighbours'
            found = bootstrap_mean(values, groups=[clip.prompt for clip in having])
            row.mean[metric], row.low[metric], row.high[metric] = found.mean, found.low, found.high
    return row


def differences(clips: list[ClipResult], rivals: Iterable[str], budget: float) -> list[PairedDifference]:
    """TAP against each rival at one budget, clip by clip."""
    at = {(c.method, (c.prompt, c.seed, c.draw)): c for c in clips if c.budget == budget and c.status == "ok"}
    own_key = ours(key for key, _ in at)
    found = []
    for rival in rivals:
        pairs = [
            (own, other)
            for (method, place), own in at.items()
            if method == own_key != rival and (other := at.get((rival, place))) is not None
        ]
        for metric in dict.fromkeys(name for own, _ in pairs for name in own.metrics):
            found += _difference(metric, rival, budget, pairs)
    return found


def _failures(clips: list[ClipResult]) -> list[str]:
    return [clip.note for clip in clips if clip.status == "failed"][:1]


def _difference(
    metric: str, rival: str, budget: float, pairs: list[tuple[ClipResult, ClipResult]]
) -> list[PairedDifference]:
    """One, or none where a single prompt tells nothing of how much others would differ."""
    values = [
        (a, b, own.prompt)
        for own, other in pairs
        if (a := own.metrics.get(metric)) is not None and (b := other.metrics.get(metric)) is not None
    ]
    if not values:
        return []
    ours, theirs, prompts = zip(*values, strict=True)
    found = bootstrap_difference(ours, theirs, groups=prompts)
    if found.low is None or found.high is None:
        return []
    return [
        PairedDifference(
            method=pairs[0][0].method,
            rival=rival,
            budget=budget,
            metric=metric,
            mean=found.mean,
            low=found.low,
            high=found.high,
            num_clips=found.num_clips,
            behind=sum(a < b - BEHIND for a, b, _ in values) if metric == "psnr" else None,
        )
    ]


def save(folder: Path, comparison: Comparison) -> None:
    """results.json and results.csv."""
    atomic_write_text(folder / "results.json", json.dumps(asdict(comparison), indent=1, allow_nan=False))
    metrics = list(dict.fromkeys(name for clip in comparison.clips for name in clip.metrics))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_CSV_HEAD, *metrics, "settings"])
    for clip in comparison.clips:
        head = [getattr(clip, name) for name in _CSV_HEAD]
        writer.writerow([*head, *(clip.metrics.get(name) for name in metrics), json.dumps(clip.settings)])
    atomic_write_text(folder / "results.csv", text.getvalue())


def render(comparison: Comparison, targets: dict[float, float], tolerance: float) -> str:
    """The table for the console: by budget, best PSNR first, what is not at equal compute last."""
    lines: list[str] = []
    for budget in dict.fromkeys(row.budget for row in comparison.table):
        rows = [row for row in comparison.table if row.budget == budget]
        target = targets.get(budget) if budget else None
        title = f"{budget:g} x, {target:.1f} full passes" if budget and target else "references, against the first"
        lines += ["", title, _HEAD]
        rows.sort(key=lambda row: (not at_equal_compute(row, target, tolerance), -(row.mean.get("psnr") or -1.0)))
        lines += [
            _line(row, at_equal_compute(row, target, tolerance)) for row in (rows if budget else _in_order(comparison))
        ]
        lines += [_difference_line(d, comparison) for d in comparison.differences if _shown(d, budget)]
    lines += [f"\n{said}" for said in _explained(comparison)]
    return "\n".join(lines)


def _explained(comparison: Comparison) -> list[str]:
    """What columns mean whose heads do not say it."""
    behind = any(row.behind is not None for row in comparison.table)
    chance = any(row.chance is not None for row in comparison.table)
    simple = f"behind: clips that are more than {BEHIND:g} dB below the better of {' and '.join(SIMPLE)}"
    spread = "chance: standard deviation of one clip's PSNR in dB, over draws that differ by a nudge of the noise"
    return [*([simple] if behind else []), *([spread] if chance else [])]


def _in_order(comparison: Comparison) -> list[MethodSummary]:
    return [row for row in comparison.table if row.budget is None]


def at_equal_compute(row: MethodSummary, target: float | None, tolerance: float) -> bool:
    """Whether a row is at its budget's full passes, on the clips it reports; 1 % is left for these being others."""
    if target is None:
        return True
    return row.full_passes is not None and abs(row.full_passes - target) <= (tolerance + 0.01) * target


def _line(row: MethodSummary, fair: bool) -> str:
    if not row.num_clips:
        return f"{row.label:<44}{row.note[:100]}"
    decibels, low, high, worst = (part.get("psnr") for part in (row.mean, row.low, row.high, row.worst))
    psnr = "-" if decibels is None else f"{decibels:.2f}"
    psnr += f" [{low:.2f}, {high:.2f}]" if low is not None and high is not None else ""
    ssim = row.mean.get("ssim")
    end = "" if fair else f"  not at equal compute: {row.note}" if row.note else "  not at equal compute"
    return (
        f"{row.label:<44}{row.full_passes or 0:>7.2f}{row.speedup or 0:>7.2f}x  {psnr:<22}"
        f"{_figure(worst, 2):>6}{_figure(row.behind, 0):>8}{_figure(row.chance, 2):>8}  {_figure(ssim, 4):>6}{end}"
    )


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _shown(difference: PairedDifference, budget: float | None) -> bool:
    return difference.budget == budget and difference.metric == "psnr"


def _difference_line(d: PairedDifference, comparison: Comparison) -> str:
    labels = {row.method: row.label for row in comparison.table}
    names = f"{labels.get(d.method, d.method)} - {labels.get(d.rival, d.rival)}"
    behind = f", over {BEHIND:g} dB behind on {d.behind} of {d.num_clips} clips" if d.behind else ""
    return f"  {names}: {d.mean:+.2f} dB [{d.low:+.2f}, {d.high:+.2f}]{behind}"


def _higher_is_better(metric: str) -> bool:
    known = METRICS.get(metric.partition("@")[0])
    return known is None or known.higher_is_better


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _speedup(clips: list[ClipResult]) -> float | None:
    """Total seconds over total seconds; each clip carries the un-accelerated seconds of its own session."""
    pairs = [(c.speedup * c.denoise_seconds, c.denoise_seconds) for c in clips if c.speedup and c.denoise_seconds]
    return sum(a for a, _ in pairs) / sum(b for _, b in pairs) if pairs else None
