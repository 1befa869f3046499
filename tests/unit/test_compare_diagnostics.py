"""Diagnostics against cases whose answer is known."""

import math

import pytest
import torch

from tapvideo.compare.diagnostics import Shadow, agreement, choices, diagnose, recomputed, unreachable, verdict
from tapvideo.config import ScheduleConfig, TapConfig
from tapvideo.models.watch import StackCall, watched
from tapvideo.planning import make_plan
from tapvideo.predictors import candidate_bank
from tapvideo.probe import gram
from tapvideo.select import forecast

CONFIG = TapConfig(schedule=ScheduleConfig(interval=4, warmup=3, last=1), maps=False)
STEPS = 14


def shadowed(residual_at, probe_at):
    shadow = Shadow(CONFIG, make_plan(CONFIG, STEPS))
    shadow.begin()
    for step in range(STEPS):
        hidden = torch.zeros(1, 5, 6)
        shadow.see(StackCall("cond", step, None, hidden, probe_at(step), hidden + residual_at(step)))
    return shadow


def linear(seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 1, 5, 6, generator=generator)
    return lambda step: a + b * step


def test_straight_lines_are_forecast_exactly_by_order_one_and_by_the_choice():
    found = diagnose(shadowed(linear(0), linear(1)), num_clips=1)
    mean = found["residual error, mean over steps"]
    assert mean["order 1, k"] < 1e-3  # a square root of rounding
    assert mean["per token"] < 1e-3
    assert mean["oracle per token"] <= mean["oracle global"] < 1e-3
    assert mean["reuse"] > 0.05
    assert mean["random"] > mean["per token"]
    assert found["residual error by step"]["step"] == [3, 4, 5, 7, 8, 9, 11, 12]


def test_errors_are_those_of_forecasts_that_are_made():
    """Second implementation: the forecast itself, against the truth."""
    generator = torch.Generator().manual_seed(3)
    residuals, probes = torch.randn(2, STEPS, 1, 5, 6, generator=generator)
    found = diagnose(shadowed(lambda s: residuals[s], lambda s: probes[s]), num_clips=1)
    steps = found["residual error by step"]["step"]
    for name, orders, back in (("reuse", [0], 0), ("order 2, k-1", [2], 1), ("order 1, k-4", [1], 4)):
        for index, step in enumerate(steps):
            anchors = [a for a in (0, 1, 2, 6, 10) if a < step][::-1][:3]
            coords = [float(a) for a in anchors]
            bank = candidate_bank(
                coords, float(step), steps_ahead=step - anchors[0], family="taylor", orders=orders,
                lookback=float(back), spacing=1.0,
            )  # fmt: skip
            made = forecast(torch.zeros(1, 5, 6), [residuals[a] for a in anchors], bank.weights[-1:, None])
            error = (made - residuals[step]).norm() / residuals[step].norm()
            assert found["residual error by step"][name][index] == pytest.approx(error.item(), rel=1e-4)


def test_choices_bound_each_other():
    proxy, missed = torch.rand(2, 40, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = choices(proxy, missed)
    assert found["oracle per token"] <= found["oracle global"] <= found["random"]
    assert found["oracle per token"] <= found["per token"]
    assert found["random"] == pytest.approx(missed.mean(1).sum().item())
    perfect = choices(missed, missed)
    assert perfect["per token"] == perfect["oracle per token"]


def test_recomputing_the_worst_tokens_is_what_is_left_without_them():
    """40 tokens of error 1 to 40; the proxy orders half of them right and half the other way."""
    missed = torch.arange(1.0, 41.0, dtype=torch.float64)[:, None]
    everything = sum(range(1, 41))
    perfect = recomputed(missed, missed)
    assert perfect["no token"] == everything
    assert perfect["10%, by proxy error"] == perfect["10%, the worst forecast"] == everything - (40 + 39 + 38 + 37)
    assert perfect["20%, at random"] == pytest.approx(0.8 * everything)
    assert recomputed(-missed, missed)["5%, by proxy error"] == everything - (1 + 2)


def test_agreement_of_perfect_and_of_reversed_proxies():
    missed = torch.rand(40, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    same, reverse = agreement(missed**3, missed), agreement(-missed, missed)
    assert same["spearman candidates"] == pytest.approx(1)
    assert same["spearman tokens"] == pytest.approx(1)
    assert same["top-1"] == 1
    assert reverse["spearman candidates"] == pytest.approx(-1)
    assert reverse["top-1"] == 0
    assert same["top-1 by chance"] == pytest.approx(1 / 7)


def test_spearman_of_a_textbook_example():
    proxy, missed = torch.tensor([[1.0, 2, 3, 4, 5]]), torch.tensor([[2.0, 1, 4, 3, 5]])
    assert agreement(proxy, missed)["spearman candidates"] == pytest.approx(1 - 6 * 4 / (5 * 24))


def test_constant_proxy_has_no_order():
    assert agreement(torch.ones(3, 4), torch.rand(3, 4))["spearman candidates"] == 0


@pytest.mark.parametrize(("own", "said"), [(0.10, "earns its keep"), (0.1999, "does not"), (0.25, "does not")])
def test_verdict_says_it_also_when_it_does_not(own, said):
    mean = {"per token": own, "per clip": 0.3, "oracle per token": 0.05, "oracle global": 0.08, "random": 0.4}
    text = verdict({**mean, "order 1, k": 0.2, "reuse": 0.5})
    assert said in text
    assert "order 1, k" in text


def test_watch_sees_what_the_hook_would(wan, pipe):
    calls = []
    plain = wan.denoise(pipe)
    with watched(pipe.transformer, calls.append):
        assert torch.equal(wan.denoise(pipe), plain)
    assert [(c.branch, c.step) for c in calls[:4]] == [("cond", 0), ("uncond", 0), ("cond", 1), ("uncond", 1)]
    assert len(calls) == 32
    assert not math.isclose((calls[0].output - calls[0].hidden).abs().sum().item(), 0)
    assert torch.equal(wan.denoise(pipe), plain)


def test_bound_of_any_weights_is_least_squares_per_token():
    torch.manual_seed(0)
    residual, anchors = torch.randn(2, 5, 7), [torch.randn(2, 5, 7) for _ in range(3)]
    found = unreachable(gram(residual, anchors))
    known = torch.stack(anchors, -1).double()  # [2, 5, 7, 3]
    best = torch.linalg.lstsq(known, residual.double()[..., None]).solution
    left = (known @ best)[..., 0] - residual.double()
    torch.testing.assert_close(found, left.square().sum(-1).flatten(), rtol=1e-4, atol=1e-5)
    exact = gram(2 * anchors[0] - anchors[2], anchors)
    assert unreachable(exact).max() < 1e-4


def test_verdict_tells_of_calibrated_weights_apart():
    mean = {
        "per token": 2.0,
        "per clip": 2.1,
        "reuse": 3.0,
        "oracle per token": 1.0,
        "oracle global": 1.5,
        "random": 4.0,
    }
    assert "Calibrated" not in verdict(mean)
    text = verdict({**mean, "calibrated": 0.5})
    assert "earns its keep" in text  # they need no probe, and are no choice
    assert text.endswith("the same for all tokens and clips: 0.5000.")
