"""Taylor predictors on backward differences, the family of TAP and TaylorSeer."""

from collections.abc import Sequence
from itertools import pairwise
from math import factorial


def taylor_weights(coords: Sequence[float], target: float, *, order: int) -> list[float]:
    """Weights over the anchors (newest first) of sum_i D^i F k^i / i!, with D^i the i-th divided backward difference.

    With anchors N apart D^i is the paper's difference over N^i. On uneven anchors it is TaylorSeer's: differences of
    differences over the newer gap. Exact on polynomials up to degree 1 only; from degree 2 on, a backward difference is
    not the derivative at the newest anchor (Lagrange is exact). Source: TAP (arXiv 2603.03792) section 3.

    Raises:
        ValueError: if there are not `order` + 1 anchors.
    """
    if len(coords) <= order:
        raise ValueError(f"a Taylor predictor of order {order} needs {order + 1} anchors, got {len(coords)}")
    distance = target - coords[0]
    total = [0.0] * len(coords)
    differences = [[float(i == j) for i in range(len(coords))] for j in range(len(coords))]  # D^0 at anchor j
    for i in range(order + 1):
        scale = distance**i / factorial(i)
        total = [w + scale * d for w, d in zip(total, differences[0], strict=True)]
        differences = [
            [(a - b) / (coords[j] - coords[j + 1]) for a, b in zip(newer, older, strict=True)]
            for j, (newer, older) in enumerate(pairwise(differences))
        ]
    return total
