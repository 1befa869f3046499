"""VBench's sixteen dimensions, and its arithmetic from raw scores to Quality, Semantic and Total."""

from collections.abc import Mapping
from dataclasses import dataclass

_QUALITY_WEIGHT, _SEMANTIC_WEIGHT = 4, 1


@dataclass(frozen=True, slots=True)
class Dimension:
    """One thing that VBench measures of a video."""

    name: str
    low: float
    """The raw score that VBench maps to 0."""
    high: float
    """The raw score that VBench maps to 1."""
    weight: float
    """In the mean of its half."""
    is_quality: bool
    """Whether it counts for Quality; the others count for Semantic."""
    needs_suite: bool
    """Whether only VBench's own prompts say what to look for."""

    def normalise(self, raw: float) -> float:
        """A raw score on VBench's scale; as in VBench, nothing is clipped."""
        return (raw - self.low) / (self.high - self.low)


def _quality(name: str, low: float = 0.0, high: float = 1.0, weight: float = 1.0) -> Dimension:
    return Dimension(name, low, high, weight, is_quality=True, needs_suite=False)


def _semantic(name: str, low: float = 0.0, high: float = 1.0, *, needs_suite: bool = True) -> Dimension:
    return Dimension(name, low, high, 1.0, is_quality=False, needs_suite=needs_suite)


# Bounds and weights as in VBench's scripts/constant.py (github.com/Vchitect/VBench).
_ALL = (
    _quality("subject_consistency", 0.1462),
    _quality("background_consistency", 0.2615),
    _quality("temporal_flickering", 0.6293),
    _quality("motion_smoothness", 0.706, 0.9975),
    _quality("dynamic_degree", weight=0.5),
    _quality("aesthetic_quality"),
    _quality("imaging_quality"),
    _semantic("object_class"),
    _semantic("multiple_objects"),
    _semantic("human_action"),
    _semantic("color"),
    _semantic("spatial_relationship"),
    _semantic("scene", high=0.8222),
    _semantic("appearance_style", 0.0009, 0.2855),
    _semantic("temporal_style", high=0.364, needs_suite=False),
    _semantic("overall_consistency", high=0.364, needs_suite=False),
)
DIMENSIONS = {dimension.name: dimension for dimension in _ALL}


@dataclass(frozen=True, slots=True)
class Summary:
    """What VBench's leaderboard shows of a model, as far as the scores that there are allow it."""

    normalised: dict[str, float]
    """By dimension."""
    quality: float | None
    """None unless all seven dimensions of it are there."""
    semantic: float | None
    """None unless all nine dimensions of it are there."""
    total: float | None
    """None unless all sixteen are there."""
    missing: list[str]
    """Dimensions without a score."""


def summarise(raw: Mapping[str, float]) -> Summary:
    """Normalised scores, Quality, Semantic and Total of raw scores in 0..1 by dimension; nothing is made up.

    VBench's own script counts a missing dimension as 0.

    Raises:
        KeyError: for a name that is no dimension.
    """
    normalised = {name: DIMENSIONS[name].normalise(score) for name, score in raw.items()}
    quality = _half(normalised, is_quality=True)
    semantic = _half(normalised, is_quality=False)
    total = None
    if quality is not None and semantic is not None:
        total = (_QUALITY_WEIGHT * quality + _SEMANTIC_WEIGHT * semantic) / (_QUALITY_WEIGHT + _SEMANTIC_WEIGHT)
    return Summary(normalised, quality, semantic, total, [name for name in DIMENSIONS if name not in raw])


def _half(normalised: Mapping[str, float], *, is_quality: bool) -> float | None:
    members = [dimension for dimension in _ALL if dimension.is_quality == is_quality]
    if any(dimension.name not in normalised for dimension in members):
        return None
    weights = sum(dimension.weight for dimension in members)
    return sum(dimension.weight * normalised[dimension.name] for dimension in members) / weights
