"""Oracles: the nearest of what anchors can make, branches that make up for each other, nothing left behind."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from tapvideo import chunks
from tapvideo.compare import oracle
from tapvideo.compare.config import CompareConfig
from tapvideo.compare.flops import FlopLedger
from tapvideo.compare.methods import Bench
from tapvideo.compare.oracle import Oracle, best_candidate, best_weights
from tapvideo.compare.results import is_bound
from tapvideo.compare.runner import choose_methods
from tapvideo.config import ForecastConfig, GenerateConfig
from tapvideo.history import BranchState
from tapvideo.models.watch import StackCall, _exchanged, watched
from tapvideo.predictors import candidate_bank

SHAPE = (1, 6, 8)
PAPER = ForecastConfig()


def random(*shape, seed=0):
    return torch.randn(*(shape or SHAPE), generator=torch.Generator().manual_seed(seed))


def anchors(count=3):
    state = BranchState(3)
    for step in range(count):
        state.push(2 * step, 2.0 * step, None, random(seed=step))
    return state


def call(branch, step, residual, hidden=None):
    hidden = torch.zeros(SHAPE) if hidden is None else hidden
    return StackCall(branch, step, None, hidden, hidden, hidden + residual)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_best_weights_make_exactly_what_anchors_span(count):
    state, weights = anchors(count), random(*SHAPE[:2], count, seed=9)
    wanted = sum(weights[..., i : i + 1] * state.residuals[i] for i in range(count))
    torch.testing.assert_close(best_weights(state, 5, wanted), wanted, rtol=1e-4, atol=1e-5)


def test_best_weights_miss_only_what_is_at_right_angles_to_all_anchors():
    state, wanted = anchors(), random(seed=7)
    missed = best_weights(state, 5, wanted) - wanted
    for anchor in state.residuals:
        torch.testing.assert_close((missed * anchor).sum(-1), torch.zeros(SHAPE[:2]), rtol=0, atol=1e-4)


def test_best_weights_stand_anchors_that_are_the_same():
    state = BranchState(3)
    for step in range(3):
        state.push(step, float(step), None, random())
    torch.testing.assert_close(best_weights(state, 5, random() / 2), random() / 2, rtol=1e-4, atol=1e-4)


def test_best_weights_of_anchors_that_are_nothing_are_nothing():
    state = BranchState(3)
    state.push(0, 0.0, None, torch.zeros(SHAPE))
    assert torch.equal(best_weights(state, 5, random()), torch.zeros(SHAPE))


def test_best_weights_are_the_same_in_pieces(monkeypatch):
    state, wanted = anchors(), random(seed=7)
    whole = best_weights(state, 5, wanted)
    monkeypatch.setattr(chunks, "_CPU_ELEMENTS", 16)
    assert not chunks.is_one_piece(wanted)
    torch.testing.assert_close(best_weights(state, 5, wanted), whole)


def test_best_candidate_is_the_nearest_of_all_written_out():
    state, wanted = anchors(), random(seed=7)
    bank = candidate_bank(
        state.coords, 5.0, steps_ahead=1, family="taylor", orders=[0, 1, 2], lookback=4.0, spacing=1.0
    )
    every = torch.einsum("pk,kbnd->pbnd", bank.weights, torch.stack(list(state.residuals)))
    nearest = (every - wanted).norm(dim=-1).argmin(0)
    expected = every.gather(0, nearest[None, ..., None].expand(1, *SHAPE))[0]
    torch.testing.assert_close(best_candidate(PAPER)(state, 5, wanted), expected, rtol=1e-4, atol=1e-5)


def halves(state, step, wanted):
    return wanted / 2


def test_the_second_branch_makes_up_for_what_the_first_has_missed_of_the_guided_sum():
    asked = []
    one = Oracle(
        frozenset(), 3, lambda state, step, wanted: asked.append(wanted) or wanted / 2, {"cond": 6.0, "uncond": -5.0}
    )
    cond, uncond = random(seed=1), random(seed=2)
    first, second = one.see(call("cond", 4, cond)), one.see(call("uncond", 4, uncond))
    torch.testing.assert_close(asked[0], cond)
    torch.testing.assert_close(6 * first - 5 * asked[1], 6 * cond - 5 * uncond)  # what it asks for mends the sum
    torch.testing.assert_close(second, asked[1] / 2)
    one.see(call("cond", 5, cond))
    torch.testing.assert_close(asked[2], cond)  # what was missed on another step is past


def test_branches_without_a_share_are_on_their_own():
    asked = []
    one = Oracle(frozenset(), 3, lambda state, step, wanted: asked.append(wanted) or wanted / 2, {})
    for branch, seed in (("cond", 1), ("uncond", 2)):
        one.see(call(branch, 4, random(seed=seed)))
        torch.testing.assert_close(asked[-1], random(seed=seed))


def test_full_steps_are_kept_as_anchors_by_branch_and_go_on_as_they_are():
    one = Oracle(frozenset({0, 1}), 2, best_weights, {})
    for step in (0, 1):
        for branch, seed in (("cond", 10), ("uncond", 20)):
            assert one.see(call(branch, step, random(seed=seed + step), hidden=random(seed=5))) is None
    hidden, wanted = random(seed=6), random(seed=10) + 2 * random(seed=11)
    torch.testing.assert_close(one.see(call("cond", 2, wanted, hidden)), hidden + wanted, rtol=1e-4, atol=1e-4)


def test_a_run_whose_steps_are_all_full_is_a_plain_one(wan):
    pipe = wan.random_pipeline()
    plain = wan.denoise(pipe, steps=6)
    every = Oracle(frozenset(range(6)), 3, halves, {"cond": 6.0, "uncond": -5.0})
    with watched(pipe.transformer, every.see):
        assert torch.equal(wan.denoise(pipe, steps=6), plain)
    some = Oracle(frozenset({0, 1, 2, 5}), 3, halves, {"cond": 6.0, "uncond": -5.0})
    with watched(pipe.transformer, some.see):
        assert not torch.equal(wan.denoise(pipe, steps=6), plain)
    assert torch.equal(wan.denoise(pipe, steps=6), plain)


@pytest.mark.parametrize(("guidance", "branches", "shares"), [(6.0, 2, {"cond": 6.0, "uncond": -5.0}), (1.0, 1, {})])
def test_guidance_says_what_branches_count(wan, monkeypatch, guidance, branches, shares):
    pipe, made = wan.random_pipeline(), []
    bench = Bench(pipe, GenerateConfig(guidance=guidance), FlopLedger({}, 1.0, {}), branches)
    monkeypatch.setattr(oracle, "calibration_of", lambda bench: "a file")
    calibration = SimpleNamespace(best_steps=lambda count: [0, 1, count])
    monkeypatch.setattr(oracle, "load_calibration", lambda path: calibration)
    monkeypatch.setattr(oracle, "watched", lambda transformer, see: made.append(see.__self__) or nullcontext())
    for method in oracle.oracle_methods(PAPER):
        with method.apply(bench, {"full_steps": 5}) as config:
            assert config is bench.config
    assert [one.shares for one in made] == [shares] * 2
    assert made[0].full_steps == {0, 1, 5}


def test_oracles_are_made_where_they_are_asked_for():
    assert not [m.key for m in choose_methods(CompareConfig()) if is_bound(m.key)]
    assert [m.key for m in choose_methods(CompareConfig(methods=["oracle-choice"]))] == ["oracle-choice"]


def test_a_forecast_that_is_the_truth_changes_nothing(wan):
    pipe = wan.random_pipeline()
    plain = wan.denoise(pipe, steps=6)
    knows = Oracle(frozenset({0}), 3, lambda state, step, wanted: wanted, {"cond": 6.0, "uncond": -5.0})
    with watched(pipe.transformer, knows.see):
        torch.testing.assert_close(wan.denoise(pipe, steps=6), plain, rtol=1e-4, atol=1e-4)


def test_tokens_are_exchanged_in_a_tuple_and_refused_where_they_are_among_others():
    tokens, text, others = torch.zeros(2), torch.ones(3), torch.full((2,), 2.0)
    assert _exchanged(tokens, tokens, others) is others
    made = _exchanged((text, tokens), tokens, others)
    assert made[0] is text
    assert made[1] is others
    with pytest.raises(ValueError, match="cannot be exchanged"):
        _exchanged(torch.cat([text, tokens]), tokens, others)
