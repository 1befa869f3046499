"""The report as one HTML file that needs no network: videos, maps, styles and script are inside it."""

import base64
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tapvideo.report.data import ChoiceMap, Clip, Report
from tapvideo.report.page import render_page
from tapvideo.report.palette import palette
from tapvideo.report.view import clip_view, headlines, percent
from tapvideo.video_io import atomic_write_text


def write_report(path: Path, report: Report) -> None:
    """Write the page; the file is whole or not there.

    Raises:
        OSError: if a clip's video cannot be read.
        ValueError: if there are no clips, or the maps of a branch differ in size.
    """
    atomic_write_text(path, render_report(report))


def render_report(report: Report) -> str:
    """The page as text.

    Raises:
        OSError: if a clip's video cannot be read.
        ValueError: if there are no clips, or the maps of a branch differ in size.
    """
    if not report.clips:
        raise ValueError("a report needs at least one clip")
    colours = palette(_labels(report.clips))
    maps = [_maps(clip, list(colours)) for clip in report.clips]
    return render_page(
        "report.html.j2",
        styles=("base.css", "report.css"),
        scripts=("player.js", "maps.js", "report.js"),
        filters={"percent": percent},
        report=report,
        prompts=list(dict.fromkeys(clip.prompt for clip in report.clips)),
        headlines=headlines(report.clips),
        clips=[clip_view(clip, colours) for clip in report.clips],
        payload={"colours": list(colours.values()), "labels": list(colours), "maps": maps},
    )


def _labels(clips: Sequence[Clip]) -> set[str]:
    in_shares = {label for clip in clips for step in clip.steps for label in step.shares}
    return in_shares | {label for clip in clips for choice_map in clip.maps for label in choice_map.labels}


def _maps(clip: Clip, labels: Sequence[str]) -> dict[str, Any]:
    """Maps by branch: steps, grid, and the page's predictor index of every token, one byte each, compressed."""
    branches: dict[str, list[ChoiceMap]] = {}
    for choice_map in clip.maps:
        branches.setdefault(choice_map.branch, []).append(choice_map)
    return {branch: _packed(maps, labels) for branch, maps in branches.items()}


def _packed(maps: Sequence[ChoiceMap], labels: Sequence[str]) -> dict[str, Any]:
    shapes = {tuple(m.choice.shape) for m in maps}
    if len(shapes) != 1:
        raise ValueError(f"choice maps of branch {maps[0].branch!r} differ in size: {sorted(shapes)}")
    data = packed_bytes(np.stack([_page_indices(m, labels) for m in maps]))
    return {"steps": [m.step for m in maps], "grid": list(shapes.pop()), "data": data}


def packed_bytes(indices: np.ndarray) -> str:
    """Small whole numbers, one byte each, as the page's script unpacks them."""
    return base64.b64encode(zlib.compress(indices.astype(np.uint8).tobytes(), 9)).decode()


def _page_indices(choice_map: ChoiceMap, labels: Sequence[str]) -> np.ndarray:
    index = {label: i for i, label in enumerate(labels)}
    lookup = np.array([index[label] for label in choice_map.labels], np.uint8)
    return lookup[choice_map.choice.numpy()]
