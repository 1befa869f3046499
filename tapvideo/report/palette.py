"""Colours of predictors (hue is the order, lightness the distance) and of whatever else has kinds and shades."""

import re
from collections.abc import Iterable

_LABEL = re.compile(r"order (\d+), k(?:-([\d.]+))?$")

RECOMPUTED = "recomputed"
"""A token that was not forecast after all."""

_LAST_FAMILY = 99

# From dark to light. Grey, blue, orange stay apart for every kind of colour vision.
RAMPS = (
    ("#8b959c", "#c6cdd1"),
    ("#1160b0", "#a3cdf0"),
    ("#c2500a", "#fbcf9d"),
    ("#0b7a63", "#a4e0d1"),
    ("#7a2f8f", "#dfbbe8"),
)


def palette(labels: Iterable[str]) -> dict[str, str]:
    """Colour of every predictor, in the order of a legend: by order, then by distance from the target."""
    families: dict[int, list[str]] = {}
    for label in sorted(set(labels), key=_rank):
        families.setdefault(_rank(label)[0], []).append(label)
    return {
        label: mix(*RAMPS[family % len(RAMPS)], i / max(len(members) - 1, 1))
        for family, members in families.items()
        for i, label in enumerate(members)
    }


def _rank(label: str) -> tuple[int, float, str]:
    """Order and distance of a predictor; what has neither is grey, like plain reuse; recomputed tokens come last."""
    if label == RECOMPUTED:
        return _LAST_FAMILY, 0.0, label
    found = _LABEL.match(label)
    return (int(found[1]), float(found[2] or 0), label) if found else (0, 0.0, label)


def mix(dark: str, light: str, share: float) -> str:
    """The colour at a share of the way from one `#rrggbb` to another."""
    channels = zip(bytes.fromhex(dark[1:]), bytes.fromhex(light[1:]), strict=True)
    return "#" + bytes(round(d + (b - d) * share) for d, b in channels).hex()
