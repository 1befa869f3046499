"""Runs whose forecasts know the truth of their step: what choosing and fitting better, step by step, could come to.

Every step runs in full. Where the calibrated schedule has a forecast step, what the head gets is not that pass but the
nearest that anchors of the full steps can make of it, so that a forecast's errors go on into the later steps as in an
accelerated run. Where branches come one by one and guidance mixes them, the error of one may cancel that of another:
each makes up for what those before it on the same step have missed of the guided sum.

No method can do this, and no method must stay behind it: the nearest of every single step need not end nearest. A
companion sequence (the sound of LTX-2) is left as the blocks made it.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from tapvideo.calibration import load_calibration
from tapvideo.chunks import by_pieces, exact_fp32
from tapvideo.compare.methods import Bench, Knob, Method, Settings, Variant
from tapvideo.compare.own import calibration_of, counts
from tapvideo.compare.store import file_sha256
from tapvideo.config import ForecastConfig, GenerateConfig
from tapvideo.history import BranchState
from tapvideo.models.watch import StackCall, watched
from tapvideo.predictors import candidate_bank
from tapvideo.probe import forms, gram, proxy_error
from tapvideo.resolve import run_kind

_RIDGE, _TINY = 1e-9, 1e-30
_NOTE = "no method: it knows the truth of its step, and takes every pass in full to find out"

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
        true = call.output.float() - call.hidden.float()
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
    return by_pieces(_fitted, wanted, *state.residuals)


def _fitted(wanted: Float[Tensor, "*n d"], *residuals: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    anchors = torch.stack(residuals, -1).double()  # [.., n, d, k]
    products = anchors.mT @ anchors
    ridge = (_RIDGE * products.diagonal(dim1=-2, dim2=-1).mean(-1)).clamp_min(_TINY)  # anchors may be alike, or nothing
    along = (anchors.mT @ wanted.double()[..., None]).squeeze(-1)
    weights = torch.linalg.solve(products + torch.diag_embed(ridge[..., None].expand(along.shape)), along)
    return _sum(residuals, weights.float())


def _sum(anchors: Sequence[Float[Tensor, "*n d"]], weights: Float[Tensor, "*n k"]) -> Float[Tensor, "*n d"]:
    return sum((w[..., None] * a for w, a in zip(weights.unbind(-1), anchors, strict=True)), start=torch.zeros(()))


def oracle_methods(paper: ForecastConfig) -> list[Method]:
    """On the calibrated steps, where `tap=default` has its full steps too."""
    return [
        _oracle("choice", "oracle: nearest candidate per token", paper, best_candidate(paper)),
        _oracle("weights", "oracle: best weights per token", paper, best_weights),
    ]


def _oracle(name: str, label: str, paper: ForecastConfig, fit: Fit) -> Method:
    def variants(bench: Bench, target: float) -> list[Variant]:
        path = calibration_of(bench)
        shape = {key: getattr(paper, key) for key in ("family", "orders", "lookback", "spacing", "anchors")}
        known = {**shape, "calibration": file_sha256(path)[:16]}
        knob = Knob("full_steps", values=tuple(counts(bench, "calibrated")), rising=True)
        return [Variant(known, knob, lambda settings: settings["full_steps"])]

    @contextmanager
    def apply(bench: Bench, settings: Settings) -> Generator[GenerateConfig]:
        steps = load_calibration(calibration_of(bench)).best_steps(settings["full_steps"])
        (scale,) = run_kind(bench.config).scales
        shares = {"cond": scale, "uncond": 1 - scale} if bench.branches > 1 else {}
        oracle = Oracle(frozenset(steps), paper.anchors, fit, shares)
        with watched(bench.pipe.transformer, oracle.see):
            yield bench.config

    return Method(f"oracle-{name}", label, variants, apply, note=_NOTE)
