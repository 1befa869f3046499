"""Where full steps go: against every possible plan, its cost taken on the residuals themselves."""

from functools import cache
from itertools import combinations, pairwise

import pytest
import torch

from tapvideo.calibration.nodes import ANCHORS, best_plans, gap_costs, longest_gap, run_plans
from tapvideo.calibration.weights import fit

STEPS = 10


def noise(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def smooth(branches, steps, seed=0):
    """Residuals [b, steps, d] on a bent path, with a little noise of every step."""
    time = torch.linspace(0, 1, steps, dtype=torch.float64)
    basis = torch.stack([torch.ones(steps), time, time**2, torch.exp(-8 * time), torch.sin(5 * time)], 1)
    return basis.double() @ noise(branches, 5, 40, seed=seed) + 0.02 * noise(branches, steps, 40, seed=seed + 1)


def gram_of(residuals):
    flat = residuals.flatten(0, 1)
    return flat @ flat.T


def mixing(branches):
    return torch.tensor([5.0, -4.0][:branches] if branches > 1 else [1.0], dtype=torch.float64)


def plans_of(residuals, sensitivity):
    return run_plans(gram_of(residuals), mixing(len(residuals))[None], sensitivity)


def coster(residuals, sensitivity):
    """Cost of a list of full steps: every gap's errors are summed as tensors, and their sum squared."""
    gram, mix, steps = gram_of(residuals), mixing(len(residuals)), residuals.shape[1]

    @cache
    def gap(anchors, end):
        total = torch.zeros(residuals.shape[2], dtype=torch.float64)
        for step in range(anchors[0] + 1, end):
            weights = fit(gram, mix, torch.tensor([anchors]), torch.tensor([step]))[0]
            forecasts = torch.einsum("bk,bkd->bd", weights, residuals[:, list(anchors)])
            total += sensitivity[step] * (mix[:, None] * (residuals[:, step] - forecasts)).sum(0)
        return total.square().sum().item()

    def cost(full):
        edges = [*full, steps]
        return sum(gap(tuple(full[i::-1][:ANCHORS]), edges[i + 1]) for i in range(len(full)))

    return cost


def is_possible(full, steps):
    gaps = [b - a for a, b in zip(full, [*full[1:], steps], strict=True)]
    return full[0] == 0 and (len(full) == 1 or full[1] == 1) and max(gaps) <= longest_gap(steps) and gaps[0] == 1


def listed(plan):
    return plan.nonzero()[:, 0].tolist()


@pytest.mark.parametrize(("branches", "steps", "seed"), [(1, 10, 0), (2, 10, 4), (2, 9, 8)])
def test_no_plan_costs_less_than_the_one_that_is_found(branches, steps, seed):
    residuals, sensitivity = smooth(branches, steps, seed), noise(steps, seed=seed + 2).abs() + 0.1
    plans, cost = plans_of(residuals, sensitivity), coster(residuals, sensitivity)
    for count in range(1, steps + 1):
        every = [list(full) for full in combinations(range(steps), count) if is_possible(full, steps)]
        if not every:
            assert not plans[count].any()
            continue
        best = min(every, key=cost)
        assert listed(plans[count]) in every
        assert cost(listed(plans[count])) == pytest.approx(cost(best), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("steps", [12, 25, 40])
def test_every_plan_has_its_number_of_full_steps_and_begins_with_two(steps):
    plans = plans_of(smooth(2, steps), torch.ones(steps, dtype=torch.float64))
    assert plans.shape == (steps + 1, steps)
    counts = plans.sum(1)
    least = int((counts > 0).nonzero()[0])
    assert counts[:least].sum() == 0
    assert counts[least:].tolist() == list(range(least, steps + 1))
    assert plans[least:, :2].all()
    assert listed(plans[steps]) == list(range(steps))
    assert least == 4  # step 0, step 1, and two more: gaps are of a third of the run
    for plan in plans[least:]:
        assert is_possible(listed(plan), steps)


@pytest.mark.parametrize(("steps", "longest"), [(1, 2), (5, 2), (9, 3), (12, 4), (50, 16), (60, 20), (200, 20)])
def test_longest_gap_is_a_third_of_the_run(steps, longest):
    assert longest_gap(steps) == longest


def test_a_path_that_is_forecast_exactly_costs_nothing():
    """A parabola: three anchors know it, so only the gap after two is dear."""
    time = torch.linspace(-1, 1, STEPS, dtype=torch.float64)
    residuals = (time[:, None] ** torch.arange(3) @ noise(3, 40))[None]
    costs = gap_costs(gram_of(residuals), mixing(1), torch.ones(STEPS, dtype=torch.float64))
    scale = residuals.square().sum(2).mean()
    assert costs[5, 2, 1, 3] < 1e-4 * scale
    assert costs[1, 1, 0, 3] > 1e-2 * scale


def test_costs_are_where_anchors_are():
    costs = gap_costs(gram_of(smooth(1, STEPS)), mixing(1), torch.ones(STEPS, dtype=torch.float64))
    assert costs.shape == (STEPS, 4, 4, 4)
    possible = torch.isfinite(costs)
    assert not possible[..., 0].any()  # the same step twice
    assert listed(possible[0, 0, 0]) == [1]  # the second step is full
    assert not possible[1:, 0, 0].any()  # later on there are two anchors or more
    assert listed(possible[3, 3, 0]) == [1, 2, 3]  # two anchors: the older is step 0
    assert not possible[4, 3, 0].any()
    assert not possible[4, 3, 2].any()  # an anchor before the run
    assert listed(possible[5, 3, 2]) == [1, 2, 3]
    assert listed(possible[9, 1, 1]) == [1]  # nothing after the end
    assert (costs[possible] >= 0).all()
    assert (costs[..., 1][possible[..., 1]] == 0).all()  # to the very next step nothing is forecast


def test_a_gap_costs_the_sum_of_its_errors_squared():
    """Constant residuals but for two steps that err in opposite directions: in one gap they cancel."""
    residuals = torch.zeros(1, STEPS, 2, dtype=torch.float64)
    residuals[..., 0] = 1.0
    residuals[0, 5:7, 1] = torch.tensor([0.5, -0.5])
    costs = gap_costs(gram_of(residuals), mixing(1), torch.ones(STEPS, dtype=torch.float64))
    torch.testing.assert_close(costs[4, 1, 1, 2], torch.tensor(0.25).double(), rtol=1e-3, atol=0)
    assert costs[4, 1, 1, 3] < 1e-6
    swayed = torch.ones(STEPS, dtype=torch.float64)
    swayed[6] = 3.0  # -2 of the sum remain
    costs = gap_costs(gram_of(residuals), mixing(1), swayed)
    torch.testing.assert_close(costs[4, 1, 1, 3], torch.tensor(1.0).double(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("seed", range(3))
def test_more_full_steps_cost_no_more_on_a_smooth_path(seed):
    """Not so of every path: where errors cancel within a gap, one more full step may part them."""
    residuals, sensitivity = smooth(2, 20, seed), torch.ones(20, dtype=torch.float64)
    cost = coster(residuals, sensitivity)
    found = [cost(listed(plan)) for plan in plans_of(residuals, sensitivity) if plan.any()]
    assert all(more <= fewer * 1.001 + 1e-9 for fewer, more in pairwise(found))


@pytest.mark.parametrize(("low", "high"), [(2, 12), (12, 22)])
def test_full_steps_go_where_errors_move_the_most(low, high):
    residuals, flat = smooth(1, 24), torch.ones(24, dtype=torch.float64)
    swayed = flat.clone()
    swayed[low:high] = 100.0
    before, after = (plans_of(residuals, s)[10, low:high].sum() for s in (flat, swayed))
    assert after > before
    assert after >= 7  # of ten, of which two lie at the start


def test_a_unit_of_sensitivity_changes_no_plan():
    residuals, sensitivity = smooth(2, 14), noise(14).abs() + 0.1
    assert torch.equal(plans_of(residuals, sensitivity), plans_of(residuals, sensitivity * 1e3))


def test_ties_are_broken_the_same_way():
    """Nothing costs anything: the last full step is as early as can be, then those before it as late as can be."""
    costs = gap_costs(gram_of(smooth(1, 12)), mixing(1), torch.ones(12, dtype=torch.float64))
    costs[torch.isfinite(costs)] = 0.0
    plans, totals = best_plans(costs)
    assert torch.equal(plans, best_plans(costs.clone())[0])
    assert totals.isfinite().tolist() == plans.any(1).tolist()
    assert listed(plans[9]) == list(range(9))
    assert listed(plans[4]) == [0, 1, 5, 8]
