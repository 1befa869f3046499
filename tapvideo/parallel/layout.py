"""Which rank holds which tokens.

Tokens that need recomputing lie together: at a moving edge, in the last frames, in a corner. Contiguous slices would
give one rank all of them. Attention does not care about order, rotary tables go by position and the output is put back
in order before it is unpatchified, so any layout is free.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

LAYOUTS = ("diagonal", "strided", "contiguous")


@dataclass(frozen=True, slots=True)
class Layout:
    """Positions of every rank's tokens in the whole sequence, ascending; sizes differ by one at most."""

    shards: tuple[Int64[Tensor, " _"], ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Tokens of every rank."""
        return tuple(len(shard) for shard in self.shards)

    @property
    def order(self) -> Int64[Tensor, " tokens"]:
        """Positions in the order in which gathered rows come: rank after rank."""
        return torch.cat(self.shards)

    def in_order(self, rows: Shaped[Tensor, " tokens *row"]) -> Shaped[Tensor, " tokens *row"]:
        """Gathered rows, put back in the order of the sequence."""
        out = torch.empty_like(rows)
        out[self.order] = rows
        return out


def make_layout(grid: tuple[int, int, int], ranks: int, *, kind: str, device: torch.device) -> Layout:
    """Spread the tokens of a grid of frames, rows and columns over ranks.

    Args:
        grid: what tokens lie on, in raster order.
        ranks: how many share them.
        kind: `diagonal` (frame + row + column modulo ranks: no structure along any dim falls on one rank), `strided`
            (position modulo ranks) or `contiguous` slices.
        device: where the positions shall be.

    Raises:
        ValueError: if there are more ranks than tokens, or the kind is not known.
    """
    tokens = math.prod(grid)
    if ranks > tokens:
        raise ValueError(f"{ranks} ranks cannot share {tokens} tokens; allowed: up to one rank a token")
    position = torch.arange(tokens)
    if kind == "contiguous":
        owner = torch.repeat_interleave(torch.arange(ranks), torch.tensor(_even(tokens, ranks)))
    elif kind == "strided":
        owner = position % ranks
    elif kind == "diagonal":
        _, rows, columns = grid
        frame, row, column = position // (rows * columns), position // columns % rows, position % columns
        owner = _balance((frame + row + column) % ranks, ranks)
    else:
        raise ValueError(f"layout {kind!r} is not known; allowed: {', '.join(LAYOUTS)}")
    return Layout(tuple((owner == rank).nonzero().squeeze(1).to(device) for rank in range(ranks)))


def _even(tokens: int, ranks: int) -> list[int]:
    base, more = divmod(tokens, ranks)
    return [base + (rank < more) for rank in range(ranks)]


def _balance(owner: Int64[Tensor, " tokens"], ranks: int) -> Int64[Tensor, " tokens"]:
    """The same owners, but for the few tokens that ranks with too many hand, last first, to those with too few."""
    counts = torch.bincount(owner, minlength=ranks)
    aim = torch.empty_like(counts)
    aim[counts.argsort(descending=True, stable=True)] = torch.tensor(_even(len(owner), ranks))
    spare = [(owner == rank).nonzero().squeeze(1)[int(aim[rank]) :] for rank in range(ranks)]
    takers = torch.repeat_interleave(torch.arange(ranks), (aim - counts).clamp_min(0))
    balanced = owner.clone()
    balanced[torch.cat(spare)] = takers
    return balanced
