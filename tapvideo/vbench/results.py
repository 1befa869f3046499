"""What a stage leaves behind: results.json, results.csv, and the table that a person reads."""

import csv
import hashlib
import io
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tapvideo.run_folder import slug
from tapvideo.vbench.dimensions import Summary
from tapvideo.vbench.paired import Row
from tapvideo.video_io import atomic_write_text

_CSV_HEAD = ("folder", "file", "prompt", "seed", "measure", "value", "error")
_SHOWN = 5


@dataclass(kw_only=True)
class ClipScores:
    """One video's figures."""

    folder: str
    """`videos` or `baseline`."""
    file: str
    prompt: str
    seed: int
    values: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    """By measure; empty where the clip was asked nothing, or VBench leaves it out."""
    errors: dict[str, str] = field(default_factory=dict[str, str])
    """Why a measure has no value, by measure."""


@dataclass(kw_only=True)
class Results:
    """`results.json`. Scores are 0 to 1; the console and the report show percent."""

    title: str
    command: str
    videos: str
    baseline: str | None
    settings: dict[str, Any]
    versions: dict[str, str]
    rows: list[Row]
    summary: Summary | None = None
    """Of the videos, by VBench's arithmetic; None for other scorers."""
    baseline_summary: Summary | None = None
    notes: list[str] = field(default_factory=list[str])
    """What a reader must know to read the figures right."""
    clips: list[ClipScores] = field(default_factory=list[ClipScores])

    @property
    def problems(self) -> list[tuple[ClipScores, str, str]]:
        """Videos that have no score though they should: clip, measure, why."""
        return [(clip, name, why) for clip in self.clips for name, why in clip.errors.items()]


def results_folder(stage: str, output_dir: str, videos: str, baseline: str | None) -> Path:
    """`output_dir/STAGE-VIDEOS-HASH`; the hash is of the folders that are compared."""
    places = [str(Path(folder).expanduser().resolve()) for folder in (videos, baseline) if folder]
    digest = hashlib.sha256(json.dumps(places).encode()).hexdigest()[:8]
    return Path(output_dir).expanduser() / f"{stage}-{slug(folder_name(videos))}-{digest}"


def folder_name(videos: str) -> str:
    """What a reader calls a folder of videos: its name, or the batch's where it is the `videos` of one."""
    place = Path(videos).expanduser().resolve()
    of_batch = place.name == "videos" and (place.parent / "videos.jsonl").is_file()
    return place.parent.name if of_batch else place.name


def save(folder: Path, results: Results) -> None:
    """Write results.json and results.csv, whole or not at all."""
    text = json.dumps(asdict(results), indent=1, ensure_ascii=False, allow_nan=False)
    atomic_write_text(folder / "results.json", text + "\n")
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(_CSV_HEAD)
    for clip in results.clips:
        head = (clip.folder, clip.file, clip.prompt, clip.seed)
        for measure, values in clip.values.items():
            writer.writerows([*head, measure, value, ""] for value in values)
        writer.writerows([*head, measure, "", why] for measure, why in clip.errors.items())
    atomic_write_text(folder / "results.csv", table.getvalue())


def render(results: Results) -> str:
    """The table for the console, in percent."""
    compared = results.baseline is not None
    head = f"{'percent':<24}{'videos [95 %]':<24}"
    lines = [head + (f"{'baseline':>9}  {'change [95 %]':<26}" if compared else "") + "   count"]
    for row in results.rows:
        text = f"{row.label:<24}{estimate(row.mean, row.low, row.high):<24}"
        if compared:
            text += f"{percent(row.baseline):>9}  {estimate(row.change, row.change_low, row.change_high, sign='+'):<26}"
        lines.append(text + f"{count(row):>8}")
    lines += [f"{name:<24}{said}" for name, said in totals(results)]
    lines += [f"note: {note}" for note in results.notes]
    return "\n".join(lines)


def problems(results: Results) -> list[str]:
    """A line for each of the first videos without a score, and how many there are."""
    found = results.problems
    lines = [f"{clip.folder}/{clip.file}: no {name}: {why}" for clip, name, why in found[:_SHOWN]]
    return lines + ([f"{len(found)} scores are missing, all of them in results.csv"] if found else [])


def totals(results: Results) -> list[tuple[str, str]]:
    """Quality, Semantic and Total, or why there are none."""
    if results.summary is None:
        return []
    said = []
    for label in ("Quality", "Semantic", "Total"):
        ours = getattr(results.summary, label.lower())
        theirs = getattr(results.baseline_summary, label.lower()) if results.baseline_summary else None
        text = percent(ours)
        if ours is None:
            text = "not computed"
        elif theirs is not None:
            text += f", baseline {percent(theirs)}, change {percent(ours - theirs, sign='+')}"
        said.append((label, text))
    if results.summary.missing:
        said.append(("missing for a Total", ", ".join(results.summary.missing)))
    return said


def percent(value: float | None, *, sign: str = "") -> str:
    """A share as percent with two decimals, or a dash."""
    return "-" if value is None else f"{100 * value:{sign}.2f}"


def estimate(value: float | None, low: float | None, high: float | None, *, sign: str = "") -> str:
    """A mean with its interval, where it has one."""
    interval = f" [{percent(low, sign=sign)}, {percent(high, sign=sign)}]" if low is not None else ""
    return percent(value, sign=sign) + interval


def count(row: Row) -> str:
    """Figures in a mean, and how many there should be where some lack."""
    return str(row.count) if row.count == row.expected else f"{row.count} of {row.expected}"
