"""Predictors against closed forms."""

from typing import Any

import pytest
import torch
from diffusers.hooks.taylorseer_cache import TaylorSeerState

from tapvideo.predictors import candidate_bank
from tapvideo.predictors.lagrange import lagrange_weights
from tapvideo.predictors.taylor import taylor_weights

EVEN = [10.0, 6.0, 2.0]
UNEVEN = [9.0, 5.0, 4.0]
PAPER: dict[str, Any] = {"family": "taylor", "orders": [0, 1, 2], "lookback": 4.0, "spacing": 1.0}


def value(weights, coords, function):
    return sum(w * function(c) for w, c in zip(weights, coords, strict=True))


@pytest.mark.parametrize("coords", [EVEN, UNEVEN])
@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("target", [9.5, 11.0, 13.0])
def test_lagrange_weights_exact_on_polynomials_of_their_order(coords, order, target):
    for degree in range(order + 1):
        weights = lagrange_weights(coords, target, order=order)
        assert value(weights, coords, lambda c, p=degree: c**p) == pytest.approx(target**degree)


def test_lagrange_weights_not_exact_beyond_their_order():
    assert value(lagrange_weights(UNEVEN, 11.0, order=1), UNEVEN, lambda c: c**2) != pytest.approx(121.0)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_taylor_weights_equal_the_papers_formula(order, k):
    """F + D F k / N + D^2 F k^2 / (2 N^2), with D the backward difference over full steps N = 4 apart."""
    f0, f1, f2 = 0.7, -1.3, 2.9
    terms = [f0, (f0 - f1) * k / 4, (f0 - 2 * f1 + f2) * k**2 / (2 * 4**2)]
    weights = taylor_weights(EVEN, EVEN[0] + k, order=order)
    assert weights[0] * f0 + weights[1] * f1 + weights[2] * f2 == pytest.approx(sum(terms[: order + 1]))


def test_taylor_weights_of_order_two_miss_quadratics_by_the_known_amount():
    """Backward differences are not derivatives: on c^2 with gap N the first is off by N, so the forecast by -N k."""
    k, gap = 3.0, 4.0
    weights = taylor_weights(EVEN, EVEN[0] + k, order=2)
    assert value(weights, EVEN, lambda c: c**2) == pytest.approx((EVEN[0] + k) ** 2 - gap * k)


@pytest.mark.parametrize("coords", [EVEN, UNEVEN, [7.0, 2.0, 1.0]])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_taylor_weights_equal_taylorseer_of_diffusers(coords, order):
    torch.manual_seed(0)
    features = torch.randn(3, 5, 8)
    seer = TaylorSeerState(taylor_factors_dtype=torch.float32, max_order=order)
    for coord, feature in zip(reversed(coords), features.flip(0), strict=True):
        seer.current_step = int(coord)
        seer.update((feature,))
    target = int(coords[0]) + 2
    seer.current_step = target
    (expected,) = seer.predict()  # pyright: ignore[reportAttributeAccessIssue] - its decorator is typed for functions only
    weights = torch.tensor(taylor_weights(coords, target, order=order))
    torch.testing.assert_close(torch.einsum("k,kbd->bd", weights, features), expected, atol=1e-5, rtol=1e-5)


def test_candidate_bank_of_the_paper_holds_every_order_and_distance():
    bank = candidate_bank(EVEN, 13.0, steps_ahead=3, **PAPER)
    expected = {"reuse", *(f"order {m}, k{b}" for m in (1, 2) for b in ("", "-1", "-2"))}
    assert set(bank.labels) == expected  # k - 3 is distance 0, plain reuse, and k - 4 would be behind the anchor
    assert bank.weights.shape == (7, 3)


def test_candidate_bank_rows_are_the_predictors_at_their_distances():
    bank = candidate_bank(EVEN, 13.0, steps_ahead=3, **PAPER)
    row = bank.weights[bank.labels.index("order 2, k-1")]
    torch.testing.assert_close(row, torch.tensor(taylor_weights(EVEN, 12.0, order=2)))


def test_candidate_bank_weights_sum_to_one():
    for family in ("taylor", "lagrange", "reuse"):
        changes: dict[str, Any] = {"family": family}
        bank = candidate_bank(UNEVEN, 12.5, steps_ahead=3.5, **PAPER | changes)
        torch.testing.assert_close(bank.weights.sum(1), torch.ones(len(bank.weights)))


@pytest.mark.parametrize("anchors", [1, 2])
def test_candidate_bank_lowers_orders_to_the_anchors_there_are(anchors):
    bank = candidate_bank(EVEN[:anchors], 12.0, steps_ahead=2, **PAPER)
    assert bank.weights.shape[1] == anchors
    assert not any(f"order {anchors}" in label for label in bank.labels)


def test_candidate_bank_takes_fractional_distances():
    bank = candidate_bank(EVEN, 12.0, steps_ahead=2, **PAPER | {"orders": [1], "spacing": 0.5, "lookback": 1.0})
    assert bank.labels == ("order 1, k", "order 1, k-0.5", "order 1, k-1")


@pytest.mark.parametrize("weights", [taylor_weights, lagrange_weights])
def test_weights_refuse_too_few_anchors(weights):
    with pytest.raises(ValueError, match="needs 3 anchors, got 2"):
        weights([2.0, 1.0], 3.0, order=2)
