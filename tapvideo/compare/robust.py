"""How far a mean over clips may be relied on for one of them: clips behind simple methods, and what chance decides."""

import math
from collections.abc import Iterable
from dataclasses import replace

from tapvideo.compare.results import ClipResult, MethodSummary

BEHIND = 0.5
"""dB of PSNR from which a clip counts as worse than a rival's."""

SIMPLE = ("tap-reuse", "tap-taylor1")
"""What anybody could do without choosing: on no clip should a method be worse than the better of these."""


def with_robustness(rows: Iterable[MethodSummary], clips: list[ClipResult]) -> list[MethodSummary]:
    """The rows, with how many of their clips are behind simple methods, and how much of one clip's figure is chance."""
    simple = _best_simple(clips)
    return [replace(row, behind=_behind(row, clips, simple), chance=_chance(row, clips)) for row in rows]


_Place = tuple[float | None, str, int, int]


def _best_simple(clips: list[ClipResult]) -> dict[_Place, float]:
    """Of every clip that all simple methods have made at a budget, the best PSNR among theirs."""
    found: dict[_Place, dict[str, float]] = {}
    for clip in clips:
        if clip.method in SIMPLE and (value := _psnr(clip)) is not None:
            found.setdefault(_place(clip), {})[clip.method] = value
    return {place: max(values.values()) for place, values in found.items() if len(values) == len(SIMPLE)}


def _behind(row: MethodSummary, clips: list[ClipResult], simple: dict[_Place, float]) -> int | None:
    """None where there is nothing to compare with, or not for every clip."""
    own = [(_place(clip), _psnr(clip)) for clip in _of(row, clips)]
    if row.budget is None or not own or any(place not in simple for place, _ in own):
        return None
    return sum(value is not None and value < simple[place] - BEHIND for place, value in own)  # None: identical


def _chance(row: MethodSummary, clips: list[ClipResult]) -> float | None:
    """Pooled over clips: the root of the mean of their variances, each without bias."""
    draws: dict[tuple[str, int], list[float]] = {}
    for clip in _of(row, clips):
        if (value := _psnr(clip)) is not None:
            draws.setdefault((clip.prompt, clip.seed), []).append(value)
    repeated = [values for values in draws.values() if len(values) > 1]
    if not repeated:
        return None
    spread = sum(sum((value - sum(values) / len(values)) ** 2 for value in values) for values in repeated)
    return math.sqrt(spread / sum(len(values) - 1 for values in repeated))


def _of(row: MethodSummary, clips: list[ClipResult]) -> list[ClipResult]:
    return [clip for clip in clips if (clip.method, clip.budget, clip.status) == (row.method, row.budget, "ok")]


def _place(clip: ClipResult) -> _Place:
    return clip.budget, clip.prompt, clip.seed, clip.draw


def _psnr(clip: ClipResult) -> float | None:
    return clip.metrics.get("psnr")
