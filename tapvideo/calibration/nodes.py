"""Where full steps go: dynamic programming over calibration clips' inner products.

The steps between two full steps are forecast from the same anchors, and err in much the same direction. What a gap
costs is therefore the squared length of the *sum* of its errors, each counted by how far an error at that step moves
the final latents (`sensitivity`). Gaps are counted as independent of each other, and the path over (newest anchor, its
distance to the second, and of that to the third) of least total cost is found exactly. Where two transformers share a
run, each has its own gaps, and the steps are divided among them at the least cost of both.
"""

from collections.abc import Sequence

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


def run_plans(
    gram: Float64[Tensor, "m m"],
    mix: Float64[Tensor, "e b"],
    sensitivity: Float64[Tensor, " s"],
    starts: Sequence[int] = (0,),
) -> Bool[Tensor, "s1 s"]:
    """The best full steps of a run for every number of them: row M has M, or none where no such plan exists.

    Args:
        gram: inner products of residuals, branch by branch, step by step: m = b * s.
        mix: what each branch counts in the guided sum, by transformer.
        sensitivity: of every step.
        starts: the first step of every transformer, whose anchors are its own.
    """
    steps, branches = len(sensitivity), mix.shape[1]
    plans, totals = torch.zeros(1, 0, dtype=torch.bool), torch.zeros(1, dtype=gram.dtype)
    for own_mix, start, stop in zip(mix, starts, [*starts[1:], steps], strict=True):
        rows = (torch.arange(branches)[:, None] * steps + torch.arange(start, stop)).flatten()
        longest = min(longest_gap(steps), stop - start)
        costs = gap_costs(gram[rows][:, rows], own_mix, sensitivity[start:stop], longest=longest, may_reuse=start > 0)
        plans, totals = _divided(plans, totals, *best_plans(costs))
    return plans


def _divided(
    plans: Bool[Tensor, "p1 p"],
    totals: Float64[Tensor, " p1"],
    more: Bool[Tensor, "q1 q"],
    costs: Float64[Tensor, " q1"],
) -> tuple[Bool[Tensor, "pq1 pq"], Float64[Tensor, " pq1"]]:
    """Plans of two stretches of a run as plans of both, every number of full steps divided at the least cost."""
    size = plans.shape[1] + more.shape[1]
    found = torch.zeros(size + 1, size, dtype=torch.bool)
    least = torch.full((size + 1,), torch.inf, dtype=totals.dtype)
    for first, second in torch.cartesian_prod(torch.arange(len(totals)), torch.arange(len(costs))).tolist():
        total = totals[first] + costs[second]
        if total < least[first + second]:
            least[first + second] = total
            found[first + second] = torch.cat([plans[first], more[second]])
    return found, least


def gap_costs(
    gram: Float64[Tensor, "m m"],
    mix: Float64[Tensor, " b"],
    sensitivity: Float64[Tensor, " s"],
    *,
    longest: int | None = None,
    may_reuse: bool = False,
) -> Float64[Tensor, "s l l l"]:
    """Cost of going on from an anchor: [newest anchor, distance to the second, of that to the third, gap].

    Distances are 0 where there is no such anchor; gap index 1 is to the very next step, at no cost. Infinite where
    a combination is not possible. The second step is always full unless `may_reuse`: from a single anchor nothing but
    reuse is possible, which is worst where a run begins. No gap or distance is longer than `longest`.
    """
    steps = len(sensitivity)
    size = (longest or longest_gap(steps)) + 1
    costs = torch.full((steps, size, size, size), torch.inf, dtype=gram.dtype)
    for known in range(1, ANCHORS + 1):
        states = _states(steps, size, known)
        if len(states):
            costs[states[:, 0], states[:, 1], states[:, 2]] = _costs_from(states, known, gram, mix, sensitivity, size)
    if not may_reuse:
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


def best_plans(costs: Float64[Tensor, "s l l l"]) -> tuple[Bool[Tensor, "s1 s"], Float64[Tensor, " s1"]]:
    """The best full steps for every number of them, and what they cost: row M has M, or none at infinite cost.

    Step 0 is always full. Ties go to the earliest last full step, and from there back to the smallest distances.
    """
    steps, size = costs.shape[:2]
    plans = torch.zeros(steps + 1, steps, dtype=torch.bool)
    totals = torch.full((steps + 1,), torch.inf, dtype=costs.dtype)
    reached = torch.full((steps, size, size), torch.inf, dtype=costs.dtype)
    reached[0, 0, 0] = 0.0
    origins: list[Tensor] = []
    for count in range(1, steps + 1):
        ends = reached + _to_the_end(costs)
        totals[count] = ends.min()
        if totals[count] < torch.inf:
            plans[count, _path(int(ends.argmin()), origins, size)] = True
        reached, origin = _one_more(reached, costs)
        origins.append(origin)
    return plans, totals


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
