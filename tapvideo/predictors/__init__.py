"""Families of predictors: anchor coordinates in, one weight vector per candidate out; no features in sight."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from tapvideo.predictors.lagrange import lagrange_weights
from tapvideo.predictors.reuse import reuse_weights
from tapvideo.predictors.taylor import taylor_weights
from tapvideo.probe import Forms, forms

FAMILIES = {"taylor": taylor_weights, "lagrange": lagrange_weights, "reuse": reuse_weights}
"""Name -> `weights(coords, target, order=...)`. A new family is one file, one line here and a value of `tap.family`."""


@dataclass(frozen=True, slots=True)
class Bank:
    """Candidates of one step: row p of the weights times the anchors (newest first) is the forecast of candidate p."""

    weights: Float[Tensor, "p k"]
    """Of the probe's forecast, by which candidates are judged."""
    labels: tuple[str, ...]
    applied: Float[Tensor, "p k"]
    """Of the residual's."""
    forms: Forms = field(init=False)
    """Of `weights`: once for all tokens, branches and runs."""

    def __post_init__(self) -> None:
        """Derive what follows from the weights."""
        object.__setattr__(self, "forms", forms(self.weights))

    def blended(self, other: Sequence[float], share: float) -> "Bank":
        """The same candidates, judged alike, with a share of other weights in what they apply."""
        return replace(self, applied=torch.lerp(self.applied, torch.tensor(list(other)).to(self.applied), share))

    def held(self) -> "Bank":
        """The same candidates, judged alike, but whichever is chosen, the newest anchor is reused."""
        return replace(self, applied=torch.eye(1, self.applied.shape[1]).to(self.applied).expand_as(self.applied))

    def to(self, device: torch.device) -> "Bank":
        """On a device."""
        return replace(self, weights=self.weights.to(device), applied=self.applied.to(device))


def calibrated_bank(weights: Sequence[float]) -> Bank:
    """The one candidate whose weights a calibration has found."""
    row = torch.tensor([list(weights)], dtype=torch.float32)
    return Bank(row, ("calibrated",), row)


def candidate_bank(
    coords: Sequence[float],
    target: float,
    *,
    steps_ahead: float,
    family: str,
    orders: Sequence[int],
    lookback: float,
    spacing: float,
) -> Bank:
    """Every order at every forecast distance k - lookback .. k, without repeats (TAP section 3, orders x distances).

    Args:
        coords: coordinates of the anchors, newest first.
        target: coordinate of the step to forecast.
        steps_ahead: k, the steps since the newest anchor.
        family: a name in `FAMILIES`.
        orders: orders of the family; one that needs more anchors than there are is lowered to what they allow.
        lookback: lambda, in steps.
        spacing: delta, in steps.

    Returns:
        The distinct candidates in the order of the paper's grid (orders outside, distances from k downwards inside), so
        that a tie goes to the lower order and the longer distance on every device and rank.
    """
    rows: list[list[float]] = []
    labels: list[str] = []
    weights_of = FAMILIES[family]
    for order in orders:
        for back in _distances_back(steps_ahead, lookback, spacing):
            usable = min(order, len(coords) - 1)
            distance = coords[0] + (target - coords[0]) * (1 - back / steps_ahead)
            row = weights_of(coords, distance, order=usable)
            if row not in rows:
                rows.append(row)
                labels.append(_label(row, usable, back))
    weights = torch.tensor(rows, dtype=torch.float32)
    return Bank(weights, tuple(labels), weights)


def _distances_back(steps_ahead: float, lookback: float, spacing: float) -> list[float]:
    """0, spacing, 2 spacing .. lookback steps short of the target, none beyond the newest anchor."""
    count = int(lookback / spacing + 1e-9) + 1
    return [min(i * spacing, steps_ahead) for i in range(count)]


def _label(row: list[float], order: int, back: float) -> str:
    if row[0] == 1.0 and not any(row[1:]):
        return "reuse"
    return f"order {order}, k" if back == 0 else f"order {order}, k-{back:g}"
