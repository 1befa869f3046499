"""Weights from inner products alone: closed forms, then least squares on the residuals themselves."""

import numpy as np
import pytest
import torch

from tapvideo.calibration.weights import errors, fit

STEPS = 8
RIDGE = 1e-6  # of an anchor's mean square: how far a fit may be from the exact least squares
GUIDED = torch.tensor([5.0, -4.0], dtype=torch.float64)


def noise(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def ones(count=1):
    return torch.ones(count, dtype=torch.float64)


def gram_of(residuals):
    """Inner products of [b, steps, d], branch by branch, step by step."""
    flat = residuals.flatten(0, 1)
    return flat @ flat.T


def solve(residuals, mix, anchors, target):
    """Weights of one problem, [b, k]."""
    return fit(gram_of(residuals), mix, torch.tensor([anchors]), torch.tensor([target]))[0]


def miss(residuals, mix, anchors, target, weights):
    """The guided error on tensors: sum_b mix_b (residual_b - forecast_b)."""
    forecasts = torch.einsum("bk,bkd->bd", weights, residuals[:, anchors])
    return (mix[:, None] * (residuals[:, target] - forecasts)).sum(0)


@pytest.mark.parametrize(
    ("degree", "anchors", "target", "expected"),
    [
        (0, [4], 5, [1.0]),  # a constant is reused
        (1, [4, 3], 5, [2.0, -1.0]),  # a line goes on
        (1, [4, 2], 7, [2.5, -1.5]),  # from uneven anchors as well
        (2, [5, 4, 3], 6, [3.0, -3.0, 1.0]),  # third differences vanish
        (2, [4, 2, 1], 7, [5.0, -9.0, 5.0]),  # Lagrange's basis at 7
    ],
)
def test_polynomials_are_forecast_by_lagrange(degree, anchors, target, expected):
    time = torch.arange(STEPS, dtype=torch.float64) / STEPS - 0.5
    residuals = (time[:, None] ** torch.arange(degree + 1) @ noise(degree + 1, 64))[None]
    weights = solve(residuals, ones(), anchors, target)
    np.testing.assert_allclose(weights[0], expected, rtol=0.02)  # the ridge moves nearly parallel anchors' weights
    error = miss(residuals, ones(), anchors, target, weights)
    assert error.norm() < 2e-3 * residuals[0, target].norm()  # and hardly the forecast


def test_a_linear_combination_of_anchors_is_found():
    """Anchors of unit length, at right angles: the ridge divides by 1 + RIDGE and does nothing else."""
    residuals = torch.zeros(1, STEPS, 16, dtype=torch.float64)
    residuals[0, [5, 3, 0]] = torch.eye(16, dtype=torch.float64)[:3]
    wanted = torch.tensor([[2.0, -0.5, 0.25]], dtype=torch.float64)
    residuals[0, 7] = wanted[0] @ residuals[0, [5, 3, 0]]
    torch.testing.assert_close(solve(residuals, ones(), [5, 3, 0], 7), wanted / (1 + RIDGE), rtol=1e-12, atol=0)


def test_what_an_anchor_has_nothing_of_costs_all_of_it():
    """The best forecast of what is at right angles to all anchors is nothing."""
    residuals = torch.eye(STEPS, dtype=torch.float64)[None]
    weights = solve(residuals, ones(), [4, 3, 2], 6)
    torch.testing.assert_close(weights, torch.zeros(1, 3, dtype=torch.float64))
    assert miss(residuals, ones(), [4, 3, 2], 6, weights).norm() == 1


@pytest.mark.parametrize(
    ("mix", "anchors"), [(ones(), [5, 3, 2]), (GUIDED, [5, 3, 2]), (GUIDED, [1]), (GUIDED, [4, 0])]
)
def test_fit_is_least_squares_on_the_residuals(mix, anchors):
    """NumPy's on the stacked data: one column per branch and anchor, the guided sum on the right."""
    residuals = noise(len(mix), STEPS, 200)
    known = (mix[:, None, None] * residuals[:, anchors]).flatten(0, 1).numpy().T
    wanted = (mix[:, None] * residuals[:, 7]).sum(0).numpy()
    found = solve(residuals, mix, anchors, 7).flatten()
    np.testing.assert_allclose(found, np.linalg.lstsq(known, wanted, rcond=None)[0], atol=1e-5)
    ridge = np.sqrt(RIDGE * (known**2).sum(0).mean()) * np.eye(known.shape[1])
    rows, right = np.concatenate([known, ridge]), np.concatenate([wanted, np.zeros(known.shape[1])])
    np.testing.assert_allclose(found, np.linalg.lstsq(rows, right, rcond=None)[0], atol=1e-10)


def test_branches_are_fitted_to_their_sum():
    """What one branch cannot forecast, the other's anchors make up for: errors cancel in the guided sum."""
    common, drift = noise(1, 64)[0], noise(1, 64, seed=1)[0]
    time = torch.arange(STEPS, dtype=torch.float64)
    cond = common + (time[:, None] == 7) * drift * 4.0  # what comes at step 7 no anchor of cond shows
    uncond = common + (time[:, None] == 3) * drift
    residuals = torch.stack([cond, uncond])
    weights = solve(residuals, GUIDED, [5, 4, 3], 7)
    assert miss(residuals, GUIDED, [5, 4, 3], 7, weights).norm() < 1e-3 * (5.0 * 4.0 * drift).norm()
    alone = solve(cond[None], ones(), [5, 4, 3], 7)
    assert miss(cond[None], ones(), [5, 4, 3], 7, alone).norm() > drift.norm()


@pytest.mark.parametrize("mix", [ones(), GUIDED, ones(3)])
def test_errors_in_the_gram_matrix_are_errors_on_tensors(mix):
    residuals = noise(len(mix), STEPS, 50)
    anchors, targets = torch.tensor([[5, 3, 0], [2, 1, 0]]), torch.tensor([6, 7])
    weights = noise(2, len(mix), 3, seed=2)  # any: not those that were fitted
    found = errors(weights, mix, anchors, targets, STEPS)
    squares = ((found @ gram_of(residuals)) * found).sum(1)
    for i in range(2):
        true = miss(residuals, mix, anchors[i].tolist(), int(targets[i]), weights[i])
        torch.testing.assert_close(found[i] @ residuals.flatten(0, 1), true)
        torch.testing.assert_close(squares[i], true.square().sum())


def test_no_other_weights_err_less():
    residuals = noise(2, STEPS, 100)
    best = solve(residuals, GUIDED, [5, 3, 2], 7)
    least = miss(residuals, GUIDED, [5, 3, 2], 7, best).square().sum()
    for seed in range(20):
        other = best + 0.01 * noise(2, 3, seed=seed)
        assert miss(residuals, GUIDED, [5, 3, 2], 7, other).square().sum() > least


def test_a_batch_is_its_problems_one_by_one():
    gram = gram_of(noise(2, STEPS, 60))
    anchors, targets = torch.tensor([[5, 3, 0], [2, 1, 0], [6, 5, 4]]), torch.tensor([6, 4, 7])
    together = fit(gram, GUIDED, anchors, targets)
    wrong = errors(together, GUIDED, anchors, targets, STEPS)
    assert (together.shape, wrong.shape) == ((3, 2, 3), (3, 16))
    for i in range(3):
        alone = fit(gram, GUIDED, anchors[i : i + 1], targets[i : i + 1])
        torch.testing.assert_close(together[i], alone[0], rtol=1e-12, atol=1e-12)
        one = errors(alone, GUIDED, anchors[i : i + 1], targets[i : i + 1], STEPS)
        torch.testing.assert_close(wrong[i], one[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1e-6, 1e6])
def test_units_do_not_count(size):
    residuals = noise(2, STEPS, 60)
    scaled, plain = (solve(r, GUIDED, [5, 3, 2], 7) for r in (residuals * size, residuals))
    torch.testing.assert_close(scaled, plain)


def test_a_branch_that_counts_nothing_is_forecast_for_its_own_sake():
    """Guidance 1: the sum is the first branch alone, but the other one's residuals are in the run all the same."""
    paths = noise(2 * STEPS, 30)
    gram, anchors, target = paths @ paths.T, torch.tensor([[5, 3, 1]]), torch.tensor([6])
    found = fit(gram, torch.tensor([1.0, 0.0], dtype=torch.float64), anchors, target)
    for branch in range(2):
        rows = slice(branch * STEPS, (branch + 1) * STEPS)
        assert torch.equal(found[:, branch], fit(gram[rows, rows], ones(), anchors, target)[:, 0])
    assert found[0, 1].abs().max() > 1e-3
