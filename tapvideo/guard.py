"""Whether forecasts may be trusted: what one foretells of a full step, beside what the blocks make of it.

A forecast moves away from the last anchor. Where that of the guided sum clearly moves against what the full step then
finds, the anchor alone would have been nearer; on the clips on which this was found it went on for several full steps.
So the anchor is held until the next one, and before the first one that could say so. Guidance decides: it amplifies
what branches differ in, which may be forecast wrongly while each branch for itself is forecast well.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from tapvideo.calibration import Calibration
from tapvideo.chunks import exact_fp32
from tapvideo.config import ForecastConfig
from tapvideo.history import BranchState, StepContext
from tapvideo.parallel.comm import Comm
from tapvideo.parallel.shard import TokenShard
from tapvideo.predictors import Bank
from tapvideo.probe import gram, proxy_error
from tapvideo.select import select_predictor

HELD = "held"
"""What shares and reports call a forecast step on which the last anchor is reused for want of trust."""

_AGAINST = 0.25
"""Of what was foretold: so far against it the truth may move. A half and none were no better on clips of wan_tiny."""

_SAMPLE = 1024  # tokens of the whole sequence, at the least: all where there are fewer


@dataclass(slots=True)
class _Moves:
    """Of one step, summed over the branches so far, on some tokens."""

    step: int
    foretold: Float[Tensor, "b m d"]
    found: Float[Tensor, "b m d"]
    branches: set[str] = field(default_factory=set[str])
    """Whose anchors are in it: one that has none yet has moved from nowhere."""
    judged: int = 0
    """Branches."""


@dataclass(slots=True)
class Guard:
    """Judges the guided sum of a run's branches; each of them for itself where it is not known how they are mixed."""

    config: ForecastConfig
    calibration: Calibration
    across: Comm
    """Ranks that have the other branches of this step."""
    _trusted: dict[str, bool] = field(default_factory=dict[str, bool])
    _moves: _Moves | None = None
    _rows: Tensor | None = None
    """Tokens of this rank that are looked at."""
    _counts: Tensor | float = 1.0
    """What each of them counts: nothing where it is given, and not denoised."""

    def begin(self) -> None:
        """A new run: nothing has been judged."""
        self._trusted.clear()
        self._moves, self._rows, self._counts = None, None, 1.0

    def trusts(self, branch: str) -> bool:
        """Whether what was forecast of the last full step moved as the step did; not before a forecast was judged."""
        return self._trusted.get(self._judged(branch), False)

    def foretell(
        self,
        context: StepContext,
        state: BranchState,
        probe: Float[Tensor, "b n d"] | None,
        bank: Bank,
        shard: TokenShard,
    ) -> None:
        """Keep how far a forecast for this full step is from the last anchor, before the oldest anchor goes.

        A single anchor foretells no move: it is what would be held.

        Args:
            context: of the full step.
            state: anchors before it.
            probe: of the full step; None where the bank has one candidate.
            bank: candidates for it.
            shard: which tokens these are of.

        Raises:
            PeerLost: if another rank does not answer.
        """
        self._rows = rows = sample_rows(shard.positions, sum(shard.layout.sizes))
        self._counts = 1.0
        if context.given is not None:
            here = context.given.to(shard.positions.device)
            self._counts = (~here).index_select(1, shard.positions[rows])[..., None].float()
        anchors = [residual.index_select(1, rows).float() for residual in state.residuals]
        weights = bank.applied[:1, None]
        if probe is not None:
            seen = [kept.index_select(1, rows) for kept in state.probes]
            with exact_fp32(probe.device):
                error = proxy_error(gram(probe.index_select(1, rows), seen), bank.forms, proxy=self.config.proxy)
            if self.config.choice == "sample":
                total = (error * self._counts).sum(1, keepdim=True)
                error = shard.comm.mean(total, 1, what="guard").expand_as(error)
            weights = bank.applied[select_predictor(error, choice="token")]
        moved = sum((w[..., None] * a for w, a in zip(weights.unbind(-1), anchors, strict=True)), start=-anchors[0])
        if len(anchors) < 2:
            moved = torch.zeros_like(moved)
        if self._moves is None or self._moves.step != context.step:
            self._moves = _Moves(context.step, torch.zeros_like(moved), torch.zeros_like(moved))
        self._moves.branches.add(context.branch)
        self._moves.foretold += self._share(context) * moved
        self._moves.found -= self._share(context) * anchors[0]

    def judge(self, context: StepContext, state: BranchState, sharing: Comm) -> None:
        """Say whether to trust what is forecast from here, now that the full step is the newest anchor.

        Args:
            context: of the full step; nothing is said of one that was not foretold, nor where no move was.
            state: anchors with it.
            sharing: ranks that have the other tokens, and must come to the same.

        Raises:
            PeerLost: if another rank does not answer.
        """
        moves = self._moves
        if moves is None or moves.step != context.step or self._rows is None or context.branch not in moves.branches:
            return
        moves.found += self._share(context) * state.residuals[0].index_select(1, self._rows).float()
        moves.judged += 1
        both, mixed, halves = torch.stack([moves.foretold, moves.found]), self.calibration.knows_mix, self.across.size
        if mixed and halves > 1:
            both = self.across.all_gather(both[None], [1] * halves, what="guard").sum(0)
        foretold, moved = both.double()
        along, length = sharing.mean(torch.stack([(foretold * moved).sum(), foretold.square().sum()]), 1, what="guard")
        if length > 0:
            self._trusted[self._judged(context.branch)] = bool(along >= -_AGAINST * length)
        if not mixed or moves.judged * halves == len(self.calibration.branches):
            self._moves = None  # nothing is kept between steps; where branches are judged apart, nor between them

    def _judged(self, branch: str) -> str:
        return "" if self.calibration.knows_mix else branch

    def _share(self, context: StepContext) -> Tensor | float:
        known = self.calibration.knows_mix
        return self._counts * (self.calibration.share(context.branch, context.step) if known else 1.0)


def sample_rows(positions: Int64[Tensor, " n"], total: int) -> Int64[Tensor, " m"]:
    """Places in a rank's share of the tokens that all ranks' guards look at: every so many-th of the sequence."""
    every = max(1, total // _SAMPLE)
    return (positions % every == 0).nonzero()[:, 0]
