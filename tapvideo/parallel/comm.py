"""Two ragged collectives over one group of ranks, which say nothing at all where the group is one rank."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor

from tapvideo.parallel.ledger import Ledger


class PeerLost(RuntimeError):
    """A collective failed: another rank of the run has died or is stuck."""


class Comm:
    """Collectives of one process group on rows (dim 0), with a ledger of what they move.

    `group` None is one rank, without `torch.distributed`.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, ledger: Ledger | None = None) -> None:
        self.group = group
        self.size = dist.get_world_size(group) if group is not None else 1
        self.rank = dist.get_rank(group) if group is not None else 0
        self.ledger = ledger or Ledger()

    def all_to_all(
        self, rows: Shaped[Tensor, " sent *row"], *, send: Sequence[int], receive: Sequence[int], what: str
    ) -> Shaped[Tensor, " received *row"]:
        """Rows for rank 0, rank 1, .. (`send` each) in, rows from rank 0, rank 1, .. (`receive` each) out.

        Raises:
            PeerLost: if another rank does not answer.
        """
        if self.size == 1:
            return rows
        out = rows.new_empty((sum(receive), *rows.shape[1:]))
        self._do(dist.all_to_all_single, out, rows.contiguous(), list(receive), list(send))
        self._count(rows, receive, what)
        return out

    def all_gather(
        self, rows: Shaped[Tensor, " own *row"], counts: Sequence[int], *, what: str
    ) -> Shaped[Tensor, " all *row"]:
        """The rows of all ranks, rank after rank, `counts` each.

        Raises:
            PeerLost: if another rank does not answer.
        """
        if self.size == 1:
            return rows
        if len(set(counts)) > 1:  # gloo refuses uneven gathers, and padding would move more than there is
            copies = rows.expand(self.size, *rows.shape).flatten(0, 1)
            return self.all_to_all(copies, send=[len(rows)] * self.size, receive=counts, what=what)
        out = rows.new_empty((sum(counts), *rows.shape[1:]))
        self._do(_gather_collective(), out, rows.contiguous())
        self._count(rows, counts, what)
        return out

    def mean(self, values: Float[Tensor, "*any"], weight: float, *, what: str) -> Float[Tensor, "*any"]:
        """The mean of all ranks' values, weighted by `weight`: what a decision must rest on for all to agree on it.

        Raises:
            PeerLost: if another rank does not answer.
        """
        if self.size == 1:
            return values
        flat = torch.cat([values.double().flatten() * weight, values.new_tensor([weight], dtype=torch.float64)])
        everyone = self.all_gather(flat[None], [1] * self.size, what=what).sum(0)  # one order of adding on every rank
        return (everyone[:-1] / everyone[-1]).to(values).view_as(values)

    def exchange_objects(self, value: Any) -> list[Any]:
        """Every rank's value, in order, on every rank. For results and facts, not for features.

        Raises:
            PeerLost: if another rank does not answer.
        """
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        self._do(dist.all_gather_object, found, value)
        return found

    def barrier(self) -> None:
        """Wait for all ranks.

        Raises:
            PeerLost: if another rank does not come.
        """
        if self.size > 1:
            self._do(dist.barrier)

    def _do(self, collective: Callable[..., Any], *args: Any) -> None:
        try:
            collective(*args, group=self.group)
        except RuntimeError as error:
            if not _is_about_a_peer(error):
                raise
            raise PeerLost(f"another rank of this run does not answer ({str(error).splitlines()[0]})") from error

    def _count(self, rows: Tensor, counts: Sequence[int], what: str) -> None:
        row_bytes = rows.element_size() * math.prod(rows.shape[1:])
        self.ledger.count(what, row_bytes * (sum(counts) - counts[self.rank]))


def _is_about_a_peer(error: RuntimeError) -> bool:
    """Whether a collective failed for what is not here; it may also fail for want of memory, or for shapes."""
    text = str(error)
    return isinstance(error, dist.DistError) or any(word in text for word in ("gloo", "Gloo", "NCCL", "Connection"))


def _gather_collective() -> Callable[..., Any]:
    """Torch 2.13 renamed it and deprecates the old name."""
    new = getattr(dist, "all_gather_single", None)
    return new or dist.all_gather_into_tensor
