"""Where full steps go: dynamic programming over calibration clips' inner products.

The steps between two full steps are forecast from the same anchors, and err in much the same direction. What a gap
costs is therefore the squared length of the *sum* of its errors, each counted by how far an error at that step moves
the final latents (`sensitivity`). Gaps are counted as independent of each other, and the path over (newest anchor, its
distance to the second, and of that to the third) of least total cost is found exactly.
"""

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from tapvideo.calibration.weights import errors, fit

ANCHORS = 3
"""Full steps that a forecast looks back to."""
_LONGEST = 20


def longest_gap(num_steps: int) -> int:
    """Steps from one full step to the next, at most: a third of the run, if that can be searched in seconds."""
    return max(2, min(num_steps // 3, _LONGEST))


def gap_costs(
    gram: Float64[Tensor, "m m"], mix: Float64[Tensor, " b"], sensitivity: Float64[Tensor, " s"]
) -> Float64[Tensor, "s l l l"]:
    """Cost of going on from an anchor: [newest anchor, distance to the second, of that to the third, gap].

    Distances are 0 where there is no such anchor; gap index 1 is to the very next step, at no cost. Infinite where
    a combination is not possible. The second step is always full: from a single anchor nothing but reuse is possible,
    just where reuse is worst.
    """
    steps, size = len(sensitivity), longest_gap(len(sensitivity)) + 1
    costs = torch.full((steps, size, size, size), torch.inf, dtype=gram.dtype)
    for known in range(1, ANCHORS + 1):
        states = _states(steps, size, known)
        if len(states):
            costs[states[:, 0], states[:, 1], states[:, 2]] = _costs_from(states, known, gram, mix, sensitivity, size)
    costs[0, 0, 0, 2:] = torch.inf
    return costs


def _states(steps: int, size: int, known: int) -> Int64[Tensor, "q 3"]:
    """All (newest anchor, distance, distance) with `known` anchors; fewer than ANCHORS only if the first is step 0."""
    axes = [torch.arange(steps), *(torch.arange(1, size) if i < known - 1 else torch.zeros(1).long() for i in range(2))]
    states = torch.cartesian_prod(*axes)
    first = states[:, 0] - states[:, 1:].sum(1)
    return states[(first >= 0) if known == ANCHORS else (first == 0)]


def _costs_from(
    states: Int64[Tensor, "q 3"],
    known: int,
    gram: Float64[Tensor, "m m"],
    mix: Float64[Tensor, " b"],
    sensitivity: Float64[Tensor, " s"],
    size: int,
) -> Float64[Tensor, "q l"]:
    steps = len(sensitivity)
    anchors = torch.stack([states[:, 0] - states[:, 1 : 1 + i].sum(1) for i in range(known)], 1)
    total = torch.zeros(len(states), len(gram), dtype=gram.dtype)
    costs = torch.full((len(states), size), torch.inf, dtype=gram.dtype)
    costs[:, 1] = 0.0
    for gap in range(2, size):
        target = states[:, 0] + gap - 1
        inside = target < steps
        target = target.clamp_max(steps - 1)
        wrong = errors(fit(gram, mix, anchors, target), mix, anchors, target, steps)
        total += wrong * (sensitivity[target] * inside)[:, None]
        costs[inside, gap] = ((total @ gram) * total).sum(1)[inside].clamp_min(0)
    return costs


def best_plans(costs: Float64[Tensor, "s l l l"]) -> Bool[Tensor, "s1 s"]:
    """The best full steps for every number of them: row M has M, or none where no such plan exists.

    Step 0 is always full. Ties go to the earliest last full step, and from there back to the smallest distances.
    """
    steps, size = costs.shape[:2]
    plans = torch.zeros(steps + 1, steps, dtype=torch.bool)
    reached = torch.full((steps, size, size), torch.inf, dtype=costs.dtype)
    reached[0, 0, 0] = 0.0
    origins: list[Tensor] = []
    for count in range(1, steps + 1):
        ends = reached + _to_the_end(costs)
        if ends.min() < torch.inf:
            plans[count, _path(int(ends.argmin()), origins, size)] = True
        reached, origin = _one_more(reached, costs)
        origins.append(origin)
    return plans


def _to_the_end(costs: Float64[Tensor, "s l l l"]) -> Float64[Tensor, "s l l"]:
    """Cost of forecasting everything after the newest anchor."""
    steps, size = costs.shape[:2]
    ends = torch.full(costs.shape[:3], torch.inf, dtype=costs.dtype)
    for anchor in range(max(0, steps - size + 1), steps):
        ends[anchor] = costs[anchor, :, :, steps - anchor]
    return ends


def _one_more(
    reached: Float64[Tensor, "s l l"], costs: Float64[Tensor, "s l l l"]
) -> tuple[Float64[Tensor, "s l l"], Int64[Tensor, "s l l"]]:
    """Least costs with one more full step, and the distance that was forgotten on the way to each."""
    steps, size = costs.shape[:2]
    found = torch.full_like(reached, torch.inf)
    origin = torch.zeros(reached.shape, dtype=torch.int64)
    for gap in range(1, size):
        best, forgotten = (reached + costs[..., gap]).min(2)  # over the third anchor, which drops out
        found[gap:, gap, :], origin[gap:, gap, :] = best[: steps - gap], forgotten[: steps - gap]
    return found, origin


def _path(state: int, origins: list[Tensor], size: int) -> list[int]:
    """Full steps on the way to a state (flattened)."""
    newest, second, third = state // size**2, state // size % size, state % size
    path = [newest]
    for origin in reversed(origins):
        forgotten = int(origin[newest, second, third])
        newest, second, third = newest - second, third, forgotten
        path.append(newest)
    return path[::-1]
