"""Lagrange extrapolation: exact on polynomials, on any spacing of the anchors."""

from collections.abc import Sequence


def lagrange_weights(coords: Sequence[float], target: float, *, order: int) -> list[float]:
    """Weights over the anchors (newest first) of the polynomial of degree `order` through the newest `order` + 1.

    Raises:
        ValueError: if there are not `order` + 1 anchors.
    """
    if len(coords) <= order:
        raise ValueError(f"a Lagrange predictor of order {order} needs {order + 1} anchors, got {len(coords)}")
    nodes = coords[: order + 1]
    weights = [0.0] * len(coords)
    for i, node in enumerate(nodes):
        weight = 1.0
        for j, other in enumerate(nodes):
            if j != i:
                weight *= (target - other) / (node - other)
        weights[i] = weight
    return weights
