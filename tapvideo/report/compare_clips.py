"""Which videos a comparison's page carries, and the curves of every clip."""

import base64
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tapvideo.compare.results import Comparison
from tapvideo.report.compare_methods import Method
from tapvideo.video_io import VideoInfo, video_info

MAX_VIDEOS = 400
MAX_BYTES = 24 * 2**20
"""Of mp4 files; base64 makes a third more of them in the page."""

Pair = tuple[str, int]
"""A prompt and a seed: what is compared with each other. Of further draws there are figures in the table alone."""


@dataclass(slots=True)
class Videos:
    """The videos that are in the page, as base64, and what is not."""

    data: list[str] = field(default_factory=list[str])
    index: dict[str, int] = field(default_factory=dict[str, int])
    """By path as the results have it: its place in `data`."""
    num_bytes: int = 0
    left_out: int = 0
    """For want of room."""
    unreadable: list[str] = field(default_factory=list[str])

    def __contains__(self, path: str | None) -> bool:
        return path in self.index


def pairs_of(comparison: Comparison) -> list[Pair]:
    """Every prompt and seed, in the order of the results."""
    return list(dict.fromkeys((c.prompt, c.seed) for c in comparison.clips if not c.draw))


def choose_videos(
    folder: Path, comparison: Comparison, budget: float | None, *, max_videos: int, max_bytes: int
) -> Videos:
    """Take videos in whole groups, so that what is in the page can be compared with each other.

    A group is all methods at one budget for one prompt and seed, with the references. All prompts come at `budget`
    first, then at the other budgets. A group that does not fit whole is left out, unless it is the very first one.
    """
    videos = Videos()
    for number, group in enumerate(_groups(comparison, budget)):
        fresh = [path for path in group if path not in videos and path not in videos.unreadable]
        loaded = {path: data for path in fresh if (data := _load(folder, path, videos)) is not None}
        size = sum(map(len, loaded.values()))
        fits = len(videos.data) + len(loaded) <= max_videos and videos.num_bytes + size <= max_bytes
        for path, data in loaded.items():
            single = number == 0 and len(videos.data) < max_videos and videos.num_bytes + len(data) <= max_bytes
            if fits or single:
                videos.index[path] = len(videos.data)
                videos.data.append(base64.b64encode(data).decode())
                videos.num_bytes += len(data)
    known = {c.video for c in comparison.clips if c.video}
    videos.left_out = len(known - set(videos.index) - set(videos.unreadable))
    return videos


def _groups(comparison: Comparison, budget: float | None) -> Iterator[list[str]]:
    budgets = list(dict.fromkeys(c.budget for c in comparison.clips if c.budget is not None))
    order = sorted(budgets, key=lambda asked: asked != budget)
    by_place: dict[tuple[Pair, float | None], list[str]] = {}
    for clip in comparison.clips:
        if clip.video:
            by_place.setdefault(((clip.prompt, clip.seed), clip.budget), []).append(clip.video)
    for asked in order or [None]:
        for pair in pairs_of(comparison):
            references = by_place.get((pair, None), [])
            own = by_place.get((pair, asked), []) if asked is not None else []
            if own or references:
                yield list(dict.fromkeys([*references, *own]))


def _load(folder: Path, path: str, videos: Videos) -> bytes | None:
    """The bytes of an mp4 inside the folder; results from elsewhere must not bring any other file into the page."""
    try:
        inside = (folder / path).resolve()
        if not inside.is_relative_to(folder.resolve()):
            raise OSError("outside the folder")
        data = inside.read_bytes()
    except (OSError, ValueError):
        data = b""
    if data[4:8] == b"ftyp":
        return data
    videos.unreadable.append(path)
    return None


def pair_info(folder: Path, comparison: Comparison, videos: Videos, pair: Pair) -> VideoInfo | None:
    """Frames, rate and size of a pair's videos, as the first of them that can be decoded says."""
    for clip in comparison.clips:
        if (clip.prompt, clip.seed) == pair and clip.video in videos:
            try:
                return video_info(folder / str(clip.video))
            except OSError:
                continue
    return None


def clip_payload(
    comparison: Comparison, methods: Sequence[Method], videos: Videos, metric_keys: Sequence[str]
) -> list[dict[str, Any]]:
    """Every clip that was made, for the script: its place, figures, curves and video."""
    pairs = {pair: i for i, pair in enumerate(pairs_of(comparison))}
    index = {m.key: i for i, m in enumerate(methods)}
    return [
        {
            "pair": pairs[clip.prompt, clip.seed],
            "method": index[clip.method],
            "budget": clip.budget,
            "passes": plain(clip.full_passes),
            "speedup": plain(clip.speedup),
            "metrics": {key: plain(clip.metrics.get(key)) for key in metric_keys},
            "framePsnr": [plain(v) for v in clip.frame_psnr],
            "stepError": [plain(v) for v in clip.step_error],
            "video": videos.index.get(clip.video) if clip.video else None,
        }
        for clip in comparison.clips
        if clip.status == "ok" and not clip.draw
    ]


def plain(value: float | None) -> float | None:
    """A number that JSON has, of five digits; None for infinity and NaN."""
    return float(f"{value:.5g}") if value is not None and math.isfinite(value) else None
