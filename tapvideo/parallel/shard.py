"""This rank's share of the tokens of one transformer."""

from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from tapvideo.parallel.attention import Rows, SequenceAttention
from tapvideo.parallel.comm import Comm
from tapvideo.parallel.layout import Layout, make_layout


class TokenShard:
    """Takes this rank's tokens out of the sequence, and puts all ranks' together again."""

    def __init__(self, attention: SequenceAttention, *, layout: str) -> None:
        self.attention = attention
        self.layout_kind = layout
        self._layouts: dict[tuple[tuple[int, int, int], torch.device], Layout] = {}
        self._layout: Layout | None = None

    @property
    def comm(self) -> Comm:
        """The sequence-parallel group."""
        return self.attention.comm

    @property
    def is_whole(self) -> bool:
        """Whether this rank has all tokens."""
        return self.comm.size == 1

    @property
    def layout(self) -> Layout:
        """Who has which tokens of the sequence at hand."""
        assert self._layout is not None, "enter() comes first"
        return self._layout

    @property
    def positions(self) -> Int64[Tensor, " n"]:
        """This rank's tokens in the sequence."""
        return self.layout.shards[self.comm.rank]

    def enter(self, grid: tuple[int, int, int], device: torch.device) -> None:
        """A sequence on this grid begins.

        Raises:
            ValueError: if it has fewer tokens than there are ranks.
        """
        key = (grid, device)
        if key not in self._layouts:
            self._layouts[key] = make_layout(grid, self.comm.size, kind=self.layout_kind, device=device)
        self._layout = self._layouts[key]

    def all_rows(self) -> Rows:
        """Every token takes part."""
        return Rows(self.layout.sizes)

    def some_rows(self, stale: Int64[Tensor, " m"]) -> Rows:
        """These positions of the sequence take part."""
        sizes, order = self.layout.sizes, self.layout.order
        slot = torch.empty_like(order)
        slot[order] = torch.arange(len(order), device=order.device)
        everyone = slot[stale].sort().values  # shards are ascending, so this is rank after rank
        bounds = torch.tensor([0, *sizes], device=order.device).cumsum(0)
        edges = torch.searchsorted(everyone, bounds).tolist()
        counts = tuple(end - start for start, end in pairwise(edges))
        rank = self.comm.rank
        own = everyone[edges[rank] : edges[rank + 1]] - bounds[rank]
        return Rows(counts, own, everyone)

    def gather_tokens(self, rows: Shaped[Tensor, "b n *rest"], *, what: str) -> Shaped[Tensor, "b tokens *rest"]:
        """All ranks' tokens, in the order of the sequence.

        Raises:
            PeerLost: if another rank does not answer.
        """
        if self.is_whole:
            return rows
        everyone = self.comm.all_gather(rows.transpose(0, 1), self.layout.sizes, what=what)
        return self.layout.in_order(everyone).transpose(0, 1)

    def gather_errors(self, error: Float[Tensor, "b n"]) -> Float[Tensor, " tokens"]:
        """The worst error of every token over the batch, of all ranks: what recomputation is decided on.

        Raises:
            PeerLost: if another rank does not answer.
        """
        return self.gather_tokens(error.amax(0, keepdim=True), what="errors")[0]

    def mean_over_tokens(
        self, error: Float[Tensor, "b n p"], given: Bool[Tensor, "b all"] | None = None
    ) -> Float[Tensor, "b 1 p"]:
        """The mean over all ranks' tokens, those that are `given` and not denoised left out.

        Raises:
            PeerLost: if another rank does not answer.
        """
        if given is None:
            return self.comm.mean(error.mean(1, keepdim=True), error.shape[1], what="errors")
        own = given if self.is_whole else given.index_select(1, self.positions)
        mean = self.comm.mean(error.masked_fill(own[..., None], 0).mean(1, keepdim=True), error.shape[1], what="errors")
        return mean / (~given).float().mean(1)[:, None, None]  # every rank knows all that is given
