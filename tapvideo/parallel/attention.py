"""Self-attention over tokens that several ranks hold: the full step's, and that of recomputed tokens over kept K/V.

Bytes are per rank and layer in units of (tokens x width) numbers, for P ranks and a share f of recomputed tokens:

    full step    ulysses 4 (P - 1) / P^2     allgather_kv 2 (P - 1) / P
    recompute    ulysses 4 f (P - 1) / P^2   allgather_kv 2 f (P - 1) / P
                                             allgather_q  (2 + heads / width) f (P - 1) / P, in fp32; in half
                                             precision the fp32 log-sums count double

`ulysses` (DeepSpeed Ulysses, arXiv 2309.14509) trades tokens for heads and back, so each rank attends with its heads
over all tokens; its K/V are kept by head. `allgather_kv` keeps all K/V on every rank. `allgather_q` keeps them where
their tokens are: queries travel, and partial results come back to be merged.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from tapvideo.parallel.comm import Comm
from tapvideo.parallel.kept import KeptKV
from tapvideo.parallel.lse import attention_part, merge_parts

ATTENTIONS = ("ulysses", "allgather_kv")
EXCHANGES = ("ulysses", "allgather_q", "allgather_kv")

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(query [b, n, h, d], key [b, m, h, d], value [b, m, h, d]) -> [b, n, h, d]."""

WholeAttention = Callable[[Tensor, Tensor, Tensor, Sequence[int]], Tensor]
"""(query, key, value of this rank's tokens, tokens of every rank) -> attention of this rank's tokens to all."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The tokens that take part in a pass through the blocks."""

    counts: tuple[int, ...]
    """Of every rank."""
    own: Int64[Tensor, " n"] | None = None
    """This rank's, as places in its shard; None is all."""
    everyone: Int64[Tensor, " m"] | None = None
    """All ranks', as places in the gathered sequence; None is all."""

    @property
    def is_full(self) -> bool:
        """Whether all tokens take part."""
        return self.own is None


class SequenceAttention:
    """What self-attention is replaced by; `begin` says which tokens the coming layers get."""

    def __init__(self, comm: Comm, *, full: str, exchange: str, usp: WholeAttention | None = None) -> None:
        """`full` and `exchange` are of `ATTENTIONS` and `EXCHANGES`, as `resolve` allows them, or xfuser's `usp`."""
        self.comm = comm
        self.full = full
        self.exchange = exchange
        self.usp = usp
        self.rows = Rows((0,) * comm.size)
        self.kept: KeptKV | None = None

    def begin(self, rows: Rows, kept: KeptKV | None) -> None:
        """The coming layers get these rows; a full step writes `kept`, a partial one reads and updates it."""
        self.rows, self.kept = rows, kept

    @torch.compiler.disable  # blocks may be compiled; which rows take part changes from step to step
    def __call__(
        self,
        layer: int,
        query: Float[Tensor, "b n h d"],
        key: Float[Tensor, "b n h d"],
        value: Float[Tensor, "b n h d"],
        kernel: Kernel,
    ) -> Float[Tensor, "b n h d"]:
        """Attention of this rank's rows to all tokens'.

        Raises:
            PeerLost: if another rank does not answer.
        """
        if self.comm.size == 1:
            return self._alone(layer, query, key, value, kernel)
        mode = self.full if self.rows.is_full else self.exchange
        passes = {
            "ulysses": self._ulysses,
            "allgather_kv": self._allgather_kv,
            "allgather_q": self._allgather_q,
            "usp": self._usp,
        }
        return passes[mode](layer, query, key, value, kernel)

    def _alone(self, layer: int, query: Tensor, key: Tensor, value: Tensor, kernel: Kernel) -> Tensor:
        if self.kept is not None and self.rows.is_full:
            self.kept.put(layer, key, value)
        return _attend(kernel, query, *self._merged(layer, key, value))

    def _merged(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Fresh rows of all ranks in, all there is to attend to out."""
        if self.kept is None or self.rows.everyone is None:
            return key, value
        return self.kept.merge(layer, self.rows.everyone, key, value)

    def _keep(self, layer: int, exchange: str, key: Tensor, value: Tensor) -> None:
        """Keep a full step's keys and values, if these are the ones that the exchange wants on this rank."""
        if self.kept is not None and self.rows.is_full and exchange == self.exchange:
            self.kept.put(layer, key, value)

    def _ulysses(self, layer: int, query: Tensor, key: Tensor, value: Tensor, kernel: Kernel) -> Tensor:
        comm, counts, own = self.comm, self.rows.counts, query.shape[1]
        self._keep(layer, "allgather_q", key, value)
        packed = torch.stack([query, key, value], 3).transpose(0, 1)  # [n, b, h, 3, d]
        by_owner = packed.unflatten(2, (comm.size, -1)).movedim(2, 0).flatten(0, 1)  # [ranks n, b, h / ranks, 3, d]
        mine = comm.all_to_all(by_owner, send=[own] * comm.size, receive=counts, what="attention")
        all_query, all_key, all_value = mine.transpose(0, 1).unbind(3)
        self._keep(layer, "ulysses", all_key, all_value)
        out = _attend(kernel, all_query, *self._merged(layer, all_key, all_value))
        back = comm.all_to_all(out.transpose(0, 1), send=counts, receive=[own] * comm.size, what="attention")
        return back.unflatten(0, (comm.size, own)).permute(2, 1, 0, 3, 4).flatten(2, 3)

    def _usp(self, layer: int, query: Tensor, key: Tensor, value: Tensor, kernel: Kernel) -> Tensor:
        assert self.usp is not None
        self._keep(layer, "allgather_q", key, value)
        return self.usp(query, key, value, self.rows.counts)

    def _allgather_kv(self, layer: int, query: Tensor, key: Tensor, value: Tensor, kernel: Kernel) -> Tensor:
        self._keep(layer, "allgather_q", key, value)
        key, value = self._gather([key, value])
        self._keep(layer, "allgather_kv", key, value)
        self._keep(layer, "ulysses", *(x.tensor_split(self.comm.size, 2)[self.comm.rank] for x in (key, value)))
        return _attend(kernel, query, *self._merged(layer, key, value))

    def _allgather_q(self, layer: int, query: Tensor, key: Tensor, value: Tensor, kernel: Kernel) -> Tensor:
        comm, counts, own = self.comm, self.rows.counts, query.shape[1]
        if self.kept is not None and self.rows.own is not None:
            key, value = self.kept.merge(layer, self.rows.own, key, value)
        (everyone,) = self._gather([query])
        out, total = attention_part(everyone, key, value)
        # Partial outputs travel in the model's dtype, their fp32 log-sums bit for bit in the same message.
        width = query.element_size()
        words = total[..., None].contiguous().view(query.dtype) if width <= total.element_size() else total[..., None]
        packed = torch.cat([out.to(query.dtype), words.to(query.dtype)], -1).transpose(0, 1)
        back = comm.all_to_all(packed, send=counts, receive=[own] * comm.size, what="attention")
        parts = back.unflatten(0, (comm.size, own)).permute(0, 2, 1, 3, 4)
        outputs, words = parts.split([query.shape[-1], words.shape[-1]], -1)
        totals = words.contiguous().view(torch.float32) if width <= total.element_size() else words.float()
        return merge_parts(outputs.float(), totals.squeeze(-1)).to(query.dtype)

    def _gather(self, parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
        packed = torch.stack(list(parts), 2).transpose(0, 1)  # [n, b, parts, h, d]
        everyone = self.comm.all_gather(packed, self.rows.counts, what="attention")
        return everyone.transpose(0, 1).unbind(2)


def resolve(*, full: str, exchange: str, heads: int, ranks: int) -> tuple[str, str]:
    """What `auto` comes to: `ulysses` where the ranks divide the heads, else `allgather_kv` and `allgather_q`.

    Raises:
        ValueError: if what is asked for does not go with this number of heads or with each other.
    """
    divides, usp = heads % ranks == 0, full == "usp"
    chosen_exchange = ("ulysses" if divides and not usp else "allgather_q") if exchange == "auto" else exchange
    chosen_full = ("ulysses" if divides else "allgather_kv") if full == "auto" else full
    if full == "auto" and chosen_exchange == "allgather_kv":
        chosen_full = "allgather_kv"  # ulysses never sees all K/V on one rank
    for key, value in (("parallel.attention", chosen_full), ("tap.recompute.exchange", chosen_exchange)):
        if value == "ulysses" and not divides:
            allowed = ", ".join(str(p) for p in range(1, heads + 1) if heads % p == 0)
            raise ValueError(f"{key}=ulysses trades heads, and {ranks} ranks do not divide {heads}; allowed: {allowed}")
    if ranks > 1 and chosen_full == "ulysses" and chosen_exchange == "allgather_kv":
        raise ValueError(
            "tap.recompute.exchange=allgather_kv keeps all K/V on every rank, and parallel.attention=ulysses never has "
            "them there; allowed with it: ulysses, allgather_q, or parallel.attention=allgather_kv"
        )
    if ranks > 1 and usp and chosen_exchange != "allgather_q":
        raise ValueError(
            f"tap.recompute.exchange={chosen_exchange} keeps K/V that parallel.attention=usp shows to nobody; allowed "
            "with it: allgather_q"
        )
    return chosen_full, chosen_exchange


def _attend(kernel: Kernel, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Nothing is asked where a rank has no row; some kernels die of it."""
    return kernel(query, key, value) if query.shape[1] else torch.empty_like(query)
