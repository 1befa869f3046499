"""Whether a choice per token earns its keep: forecasts beside the truth, on runs where every step is full.

Anchors are taken at the schedule's full steps alone, so at every forecast position the candidates are those that the
accelerated run would have had, but the truth is there too. Errors are relative L2 of the stack's residual, pooled over
tokens, branches and clips; they follow from inner products (`probe.py`), so no candidate is ever materialised.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from tapvideo.calibration import Calibration
from tapvideo.chunks import exact_fp32
from tapvideo.config import TapConfig
from tapvideo.history import BranchState
from tapvideo.models.watch import StackCall
from tapvideo.predictors import Bank, candidate_bank
from tapvideo.probe import forms, gram, proxy_error
from tapvideo.schedule import Plan, StepKind

_LEAST_GAIN = 0.01  # of the error: less is not worth a probe
_RIDGE = 1e-9
CALIBRATED = "calibrated"
ANY_WEIGHTS = "oracle per token, any weights"
_RECOMPUTED = (0.05, 0.1, 0.2)


@dataclass(slots=True)
class StepSums:
    """One forecast position, summed over tokens, branches and clips."""

    tokens: int = 0
    calls: int = 0
    truth: float = 0.0
    """Squared length of the true residuals."""
    missed: dict[str, float] = field(default_factory=dict[str, float])
    """Squared length of what each way of choosing misses."""
    recomputed: dict[str, float] = field(default_factory=dict[str, float])
    """Squared length of what TAP's choice misses once some tokens are exact."""
    sums: dict[str, float] = field(default_factory=dict[str, float])
    """Of figures that are averaged over calls."""
    shares: dict[str, float] = field(default_factory=dict[str, float])

    def errors(self) -> dict[str, float]:
        """Relative L2 by way of choosing."""
        return self._relative(self.missed)

    def recomputed_errors(self) -> dict[str, float]:
        """Relative L2 by share of tokens that are exact, and by who picks them."""
        return self._relative(self.recomputed)

    def _relative(self, missed: dict[str, float]) -> dict[str, float]:
        return {name: math.sqrt(value / self.truth) for name, value in missed.items()}


@dataclass(slots=True)
class Shadow:
    """Watches a run whose steps are all full, and says what TAP would have forecast."""

    config: TapConfig
    plan: Plan
    calibration: Calibration | None = None
    """Whose weights are tried beside the candidates."""
    steps: dict[int, StepSums] = field(default_factory=dict[int, StepSums])
    _states: dict[str, BranchState] = field(default_factory=dict[str, BranchState])

    def begin(self) -> None:
        """A new clip."""
        self._states.clear()

    def see(self, call: StackCall) -> None:
        """One pass through the stack."""
        state = self._states.setdefault(call.branch, BranchState(self.config.anchors))
        residual = call.output - call.hidden
        if self.plan[call.step] is StepKind.FULL:
            state.push(call.step, float(call.step), call.probe, residual)
            return
        with exact_fp32(call.probe.device):
            products = gram(call.probe, state.probes)
            truth = gram(residual, state.residuals)
            self._add(call, state, products, truth)

    def _add(self, call: StackCall, state: BranchState, products: Tensor, truth: Tensor) -> None:
        into = self.steps.setdefault(call.step, StepSums())
        bank = self._bank(state, call.step, self.config.orders, self.config.lookback)
        weights = bank.weights.to(products.device)
        proxy = proxy_error(products, forms(weights), proxy=self.config.proxy).flatten(0, 1).double()  # [tokens, p]
        length = truth[..., -1, -1].flatten().double()  # [tokens]
        missed = _squared(truth, weights, length)
        into.calls += 1
        into.tokens += len(length)
        into.truth += length.sum().item()
        for name, value in choices(proxy, missed).items():
            into.missed[name] = into.missed.get(name, 0.0) + value
        for order in self.config.orders:
            for back in range(int(self.config.lookback) + 1 if order else 1):
                row = self._bank(state, call.step, [order], float(back)).weights[-1:].to(products.device)
                name = f"order {order}, k-{back}" if back else f"order {order}, k"
                name = "reuse" if not order else name
                into.missed[name] = into.missed.get(name, 0.0) + _squared(truth, row, length).sum().item()
        into.missed[ANY_WEIGHTS] = into.missed.get(ANY_WEIGHTS, 0.0) + unreachable(truth).sum().item()
        if self.calibration is not None:
            found = self.calibration.weights(call.branch, [int(c) for c in state.coords], call.step)
            row = torch.tensor([found], dtype=torch.float32, device=products.device)
            into.missed[CALIBRATED] = into.missed.get(CALIBRATED, 0.0) + _squared(truth, row, length).sum().item()
        for name, value in recomputed(proxy, missed).items():
            into.recomputed[name] = into.recomputed.get(name, 0.0) + value
        best = proxy.argmin(1)
        figures = agreement(proxy, missed)
        for name, value in figures.items():
            into.sums[name] = into.sums.get(name, 0.0) + value
        for label, count in zip(bank.labels, torch.bincount(best, minlength=len(weights)).tolist(), strict=True):
            into.shares[label] = into.shares.get(label, 0.0) + count

    def _bank(self, state: BranchState, step: int, orders: list[int], lookback: float) -> Bank:
        assert state.anchor_step is not None
        return candidate_bank(
            state.coords,
            float(step),
            steps_ahead=step - state.anchor_step,
            family=self.config.family,
            orders=orders,
            lookback=lookback,
            spacing=self.config.spacing,
        )


def _squared(truth: Tensor, weights: Tensor, length: Tensor) -> Float[Tensor, "t p"]:
    """Squared length of what candidates miss of the true residual."""
    return proxy_error(truth, forms(weights), proxy="l2").flatten(0, 1).double().square() * length[:, None]


def unreachable(truth: Float[Tensor, "*b n k1 k1"]) -> Float64[Tensor, " t"]:
    """Squared length of what no weights over the anchors reach of each token's residual: a bound for all of them.

    Args:
        truth: `gram` of the true residual and the anchors'.
    """
    products = truth.flatten(0, -3).double()
    mixed, own = products[:, :-1, -1], products[:, -1, -1]  # of anchor minus residual, with the residual
    anchors = products[:, :-1, :-1] + mixed[:, :, None] + mixed[:, None, :] + own[:, None, None]
    along = mixed + own[:, None]
    ridge = _RIDGE * anchors.diagonal(dim1=1, dim2=2).mean(1)
    anchors = anchors + ridge[:, None, None] * torch.eye(anchors.shape[1], dtype=anchors.dtype, device=anchors.device)
    reached = (along * torch.linalg.solve(anchors, along)).sum(1)
    return (own - reached).clamp_min(0)


def choices(proxy: Float[Tensor, "t p"], missed: Float[Tensor, "t p"]) -> dict[str, float]:
    """Squared error of ways to choose among the candidates: TAP's, the bounds, and chance.

    Args:
        proxy: error on the probe, per token and candidate.
        missed: squared error on the residual.
    """
    per_clip = int(proxy.mean(0).argmin())
    return {
        "per token": missed.gather(1, proxy.argmin(1, keepdim=True)).sum().item(),
        "per clip": missed[:, per_clip].sum().item(),
        "oracle per token": missed.amin(1).sum().item(),
        "oracle global": missed.sum(0).amin().item(),
        "random": missed.mean(1).sum().item(),
    }


def recomputed(proxy: Float[Tensor, "t p"], missed: Float[Tensor, "t p"]) -> dict[str, float]:
    """Squared error of TAP's choice once a share of the tokens is exact, as if the blocks made nothing else of them.

    Args:
        proxy: error on the probe, per token and candidate.
        missed: squared error on the residual.
    """
    judged, best = proxy.min(1)
    left = missed.gather(1, best[:, None]).squeeze(1)
    found = {"no token": left.sum().item()}
    for share in _RECOMPUTED:
        count = int(share * len(left))
        by_proxy = judged.argsort(descending=True, stable=True)[:count]
        found[f"{share:.0%}, by proxy error"] = left.sum().item() - left[by_proxy].sum().item()
        found[f"{share:.0%}, at random"] = left.sum().item() * (1 - count / len(left))
        found[f"{share:.0%}, the worst forecast"] = left.sum().item() - left.topk(count).values.sum().item()
    return found


def agreement(proxy: Float[Tensor, "t p"], missed: Float[Tensor, "t p"]) -> dict[str, float]:
    """How well the proxy error tells the true one.

    `spearman candidates`: does it order a token's candidates. `spearman tokens`: does the proxy error of the chosen
    candidate order tokens by what the forecast misses. `top-1`: is its choice the oracle's.
    """
    best = proxy.argmin(1, keepdim=True)
    return {
        "spearman candidates": _spearman(proxy, missed),
        "spearman tokens": _spearman(proxy.gather(1, best).T, missed.gather(1, best).T),
        "top-1": (best[:, 0] == missed.argmin(1)).double().mean().item(),
        "top-1 by chance": 1 / proxy.shape[1],
    }


def _spearman(a: Float[Tensor, "rows n"], b: Float[Tensor, "rows n"]) -> float:
    """Mean over rows of the correlation of ranks; rows without any order count as 0."""
    x, y = ((_ranks(v) - (v.shape[1] - 1) / 2) for v in (a, b))
    spread = (x.square().sum(1) * y.square().sum(1)).sqrt()
    return torch.where(spread > 0, (x * y).sum(1) / spread.clamp_min(1e-12), 0.0).mean().item()


def _ranks(values: Float[Tensor, "rows n"]) -> Float[Tensor, "rows n"]:
    """Ranks from 0; equal values share the mean of theirs."""
    ordered = values.sort(1).values
    low, high = torch.searchsorted(ordered, values), torch.searchsorted(ordered, values, right=True)
    return (low + high - 1).double() / 2


def diagnose(shadow: Shadow, num_clips: int) -> dict[str, Any]:
    """Figures per step, their means and a verdict, after the shadow has seen its clips."""
    steps = sorted(shadow.steps)
    sums = [shadow.steps[step] for step in steps]
    errors = [s.errors() for s in sums]
    names = list(errors[0])
    mean = _mean(errors)
    figures = {name: [s.sums[name] / s.calls for s in sums] for name in sums[0].sums}
    shares: dict[str, float] = {}
    for s in sums:
        for label, count in s.shares.items():
            shares[label] = shares.get(label, 0.0) + count / s.tokens / len(sums)
    return {
        "verdict": verdict(mean),
        "clips": num_clips,
        "residual error, mean over steps": mean,
        "residual error with some tokens recomputed, mean over steps": _mean([s.recomputed_errors() for s in sums]),
        "proxy against truth, mean over steps": {name: sum(v) / len(v) for name, v in figures.items()},
        "share of tokens by predictor": dict(sorted(shares.items(), key=lambda item: -item[1])),
        "residual error by step": {"step": steps, **{name: [e[name] for e in errors] for name in names}},
        "proxy against truth by step": {"step": steps, **figures},
    }


def _mean(records: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(record[name] for record in records) / len(records) for name in records[0]}


def verdict(mean: dict[str, float]) -> str:
    """One sentence: whether choosing per token beats what needs no probe per token.

    Args:
        mean: residual errors by way of choosing; names that `choices` does not have are fixed predictors.
    """
    own = mean["per token"]
    others = {name for name in mean if not name.startswith(("per ", "oracle", "random", CALIBRATED))}
    fixed = min(others, key=lambda name: mean[name])
    rival = min(mean[fixed], mean["per clip"])
    name = (
        f"the best single predictor ({fixed}, picked in hindsight)" if mean[fixed] == rival else "one choice per clip"
    )
    gain = 1 - own / rival
    earns = "earns its keep" if gain >= _LEAST_GAIN else "does not earn its keep"
    bounds = (
        f"an oracle per token reaches {mean['oracle per token']:.4f}, one for all tokens {mean['oracle global']:.4f}"
    )
    calibrated = ""
    if CALIBRATED in mean:
        fitted = "fitted to the guided sum, in which errors of branches cancel"
        calibrated = f" Calibrated weights ({fitted}), the same for all tokens and clips: {mean[CALIBRATED]:.4f}."
    return (
        f"The choice per token {earns}: residual error {own:.4f} against {rival:.4f} of {name} "
        f"({abs(gain):.1%} {'less' if gain >= 0 else 'more'}); {bounds}, a random choice {mean['random']:.4f}."
        f"{calibrated}"
    )
