"""Runs whose forecasts know the truth: bounds for whoever chooses candidates or fits weights, and no methods.

Every step runs in full. Where the calibrated schedule has a forecast step, what the head gets is not that pass but the
best that anchors of the full steps can make of it, so that a forecast's errors go on into the later steps as in an
accelerated run. Branches are mixed by guidance, where the error of one may cancel that of another: each makes up for
what those before it on the same step have missed of the guided sum.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from tapvideo.calibration import load_calibration
from tapvideo.chunks import exact_fp32
from tapvideo.compare.methods import Bench, Knob, Method, Settings, Variant
from tapvideo.compare.own import calibration_of, counts
from tapvideo.compare.store import file_sha256
from tapvideo.config import ForecastConfig, GenerateConfig
from tapvideo.history import BranchState
from tapvideo.models.watch import StackCall, watched
from tapvideo.predictors import candidate_bank
from tapvideo.probe import forms, gram, proxy_error
from tapvideo.resolve import run_kind

_RIDGE = 1e-9
_NOTE = "no method: it knows the truth, and takes every pass in full to find out"

Fit = Callable[[BranchState, int, Float[Tensor, "b n d"]], Float[Tensor, "b n d"]]
"""The forecast for a step that comes nearest to what is wanted of the residual."""


@dataclass(slots=True)
class Oracle:
    """Puts the nearest forecast in the place of what the blocks made, for the length of one clip."""

    full_steps: frozenset[int]
    anchors: int
    fit: Fit
    shares: dict[str, float]
    """What a branch counts in the guided sum; branches that are not named are on their own."""
    _states: dict[str, BranchState] = field(default_factory=dict[str, BranchState])
    _missed: tuple[int, Tensor] | None = None
    """The step, and what the guided sum is off by so far."""

    def see(self, call: StackCall) -> Float[Tensor, "b n d"] | None:
        """What goes into the head; None on a full step."""
        state = self._states.setdefault(call.branch, BranchState(self.anchors))
        true = (call.output - call.hidden).float()
        if call.step in self.full_steps:
            state.push(call.step, float(call.step), None, true)
            return None
        share, missed = self.shares.get(call.branch, 0.0), self._missed
        before = missed[1] if share and missed is not None and missed[0] == call.step else torch.zeros_like(true)
        with exact_fp32(true.device):
            found = self.fit(state, call.step, true - before / share if share else true)
        if share:
            self._missed = call.step, before + share * (found - true)
        return (call.hidden.float() + found).to(call.output.dtype)


def best_candidate(config: ForecastConfig) -> Fit:
    """Of every token the candidate that comes nearest."""

    def fit(state: BranchState, step: int, wanted: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        assert state.anchor_step is not None
        bank = candidate_bank(
            state.coords,
            float(step),
            steps_ahead=step - state.anchor_step,
            family=config.family,
            orders=config.orders,
            lookback=config.lookback,
            spacing=config.spacing,
        ).to(wanted.device)
        error = proxy_error(gram(wanted, state.residuals), forms(bank.weights), proxy="l2")
        return _sum(state.residuals, bank.weights[error.argmin(-1)])

    return fit


def best_weights(state: BranchState, step: int, wanted: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
    """Of every token the sum of its anchors, by any weights, that comes nearest: least squares."""
    anchors = torch.stack(list(state.residuals), -1).double()  # [b, n, d, k]
    products = anchors.mT @ anchors
    ridge = _RIDGE * products.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None].expand(products.shape[:-1])
    along = (anchors.mT @ wanted.double()[..., None]).squeeze(-1)
    return _sum(state.residuals, torch.linalg.solve(products + torch.diag_embed(ridge), along).float())


def _sum(anchors: Sequence[Float[Tensor, "b n d"]], weights: Float[Tensor, "b n k"]) -> Float[Tensor, "b n d"]:
    return sum((w[..., None] * a for w, a in zip(weights.unbind(-1), anchors, strict=True)), start=torch.zeros(()))


def oracle_methods(paper: ForecastConfig) -> list[Method]:
    """Bounds on the calibrated steps, where `tap=default` has its full steps too."""
    return [
        _oracle("choice", "oracle: the candidate nearest to the truth, per token", paper, best_candidate(paper)),
        _oracle("weights", "oracle: the weights nearest to the truth, per token", paper, best_weights),
    ]


def _oracle(name: str, label: str, paper: ForecastConfig, fit: Fit) -> Method:
    def variants(bench: Bench, target: float) -> list[Variant]:
        path = calibration_of(bench)
        known = {"calibration": file_sha256(path)[:16], "orders": paper.orders, "lookback": paper.lookback}
        knob = Knob("full_steps", values=tuple(counts(bench, "calibrated")), rising=True)
        return [Variant({**known, "anchors": paper.anchors}, knob, lambda settings: settings["full_steps"])]

    @contextmanager
    def apply(bench: Bench, settings: Settings) -> Generator[GenerateConfig]:
        steps = load_calibration(calibration_of(bench)).best_steps(settings["full_steps"])
        (scale,) = run_kind(bench.config).scales
        shares = {"cond": scale, "uncond": 1 - scale} if bench.branches > 1 else {}
        oracle = Oracle(frozenset(steps), paper.anchors, fit, shares)
        with watched(bench.pipe.transformer, oracle.see):
            yield bench.config

    return Method(f"oracle-{name}", label, variants, apply, note=_NOTE)
