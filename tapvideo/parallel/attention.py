"""Self-attention over tokens that several ranks hold: the full step's, and that of recomputed tokens over kept K/V.

Bytes are per rank and layer in units of (tokens x width) numbers, for P ranks and a share f of recomputed tokens:

    full step    ulysses 4 (P - 1) / P^2     allgather_kv 2 (P - 1) / P
    recompute    ulysses 4 f (P - 1) / P^2   allgather_kv 2 f (P - 1) / P
                                             allgather_q  (2 + heads / width) f (P - 1) / P, in fp32; in half
                                             precision the fp32 log-sums count double

`ulysses` (DeepSpeed Ulysses, arXiv 2309.14509) trades tokens for heads and back, so each rank attends with its heads
over all tokens; its K/V are kept by head. `allgather_kv` keeps all K/V on every rank. `allgather_q` keeps them where
their tokens are: queries travel, and partial results come back to be merged.

Where blocks attend to text and video jointly, every rank has all of the text and computes it anew on every pass; only
the attention of the text's own queries is shared out. For m text tokens of the width of the others that adds

    ulysses m (P - 1) / P     allgather_kv 0     allgather_q (2 + heads / width) m (P - 1) / P
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from tapvideo.parallel.comm import Comm
from tapvideo.parallel.kept import KeptKV
from tapvideo.parallel.lse import attention_part, merge_parts

ATTENTIONS = ("ulysses", "allgather_kv")
EXCHANGES = ("ulysses", "allgather_q", "allgather_kv")

Kernel = Callable[..., Tensor]
"""(query [b, n, h, d], key [b, m, h, d], value [b, m, h, d]) -> [b, n, h, d]; where text is padded, a fourth argument
says which keys count (bool [b, 1, 1, m])."""

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


@dataclass(frozen=True, slots=True)
class Joint:
    """The text among a layer's rows: every rank has all of it, and its keys and values are never kept."""

    tokens: int = 0
    is_first: bool = False
    """Whether it comes before the video's rows."""
    mask: Bool[Tensor, "b m"] | None = None
    """Which of it may be attended to; None is all."""

    def split(self, rows: Float[Tensor, "b n h d"]) -> tuple[Float[Tensor, "b v h d"], Float[Tensor, "b m h d"]]:
        """The video's rows and the text's."""
        video = rows.shape[1] - self.tokens
        return (rows[:, self.tokens :], rows[:, : self.tokens]) if self.is_first else (rows[:, :video], rows[:, video:])

    def join(self, video: Float[Tensor, "b v h d"], text: Float[Tensor, "b m h d"]) -> Float[Tensor, "b n h d"]:
        """The rows as they were before `split`."""
        return torch.cat(self._in_order(video, text), 1) if self.tokens else video

    def interleave(self, videos: Sequence[Tensor], texts: Sequence[Tensor]) -> Float[Tensor, "b all h d"]:
        """One `join` after the other, without a copy of each."""
        pairs = zip(videos, texts, strict=True)
        return torch.cat([part for video, text in pairs for part in self._in_order(video, text)], 1)

    def key_mask(self, keys: int) -> Bool[Tensor, "b 1 1 keys"] | None:
        """Which of so many keys, text among them, may be attended to."""
        if self.mask is None:
            return None
        video = self.mask.new_ones(len(self.mask), keys - self.tokens)
        return torch.cat(self._in_order(video, self.mask), 1)[:, None, None]

    def _in_order(self, video: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return (text, video) if self.is_first else (video, text)


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

    @property
    def num_rows(self) -> int:
        """Of this rank's tokens, how many the coming layers get; text comes on top."""
        return self.rows.counts[self.comm.rank]

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
        joint: Joint | None = None,
    ) -> Float[Tensor, "b n h d"]:
        """Attention of this rank's rows to all tokens'.

        Args:
            layer: number of the layer, from 0.
            query: of this rank's rows, with the text's before or after them where `joint` says so.
            key: of the same rows.
            value: of the same rows.
            kernel: computes attention.
            joint: the text among the rows; None is no text.

        Raises:
            PeerLost: if another rank does not answer.
        """
        joint = joint or Joint()
        if self.comm.size == 1:
            return self._alone(layer, query, key, value, kernel, joint)
        mode = self.full if self.rows.is_full else self.exchange
        passes = {
            "ulysses": self._ulysses,
            "allgather_kv": self._allgather_kv,
            "allgather_q": self._allgather_q,
            "usp": self._usp,
        }
        return passes[mode](layer, query, key, value, kernel, joint)

    def _alone(self, layer: int, query: Tensor, key: Tensor, value: Tensor, kernel: Kernel, joint: Joint) -> Tensor:
        if self.kept is not None:
            (video_key, text_key), (video_value, text_value) = joint.split(key), joint.split(value)
            if self.rows.is_full:
                self.kept.put(layer, video_key, video_value)
            else:
                video_key, video_value = self._merged(layer, video_key, video_value)
                key, value = joint.join(video_key, text_key), joint.join(video_value, text_value)
        return _attend(kernel, query, key, value, joint)

    def _merged(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Fresh rows of all ranks in, all there is to attend to out."""
        if self.kept is None or self.rows.everyone is None:
            return key, value
        return self.kept.merge(layer, self.rows.everyone, key, value)

    def _keep(self, layer: int, exchange: str, key: Tensor, value: Tensor) -> None:
        """Keep a full step's keys and values, if these are the ones that the exchange wants on this rank."""
        if self.kept is not None and self.rows.is_full and exchange == self.exchange:
            self.kept.put(layer, key, value)

    def _ulysses(self, layer: int, query: Tensor, key: Tensor, value: Tensor, kernel: Kernel, joint: Joint) -> Tensor:
        comm, counts = self.comm, self.rows.counts
        videos, texts = zip(*(joint.split(rows) for rows in (query, key, value)), strict=True)
        own, each = videos[0].shape[1], query.shape[1]
        self._keep(layer, "allgather_q", *videos[1:])
        packed = torch.stack(videos, 3).transpose(0, 1)  # [n, b, h, 3, d]
        by_owner = packed.unflatten(2, (comm.size, -1)).movedim(2, 0).flatten(0, 1)  # [ranks n, b, h / ranks, 3, d]
        mine = comm.all_to_all(by_owner, send=[own] * comm.size, receive=counts, what="attention")
        all_query, all_key, all_value = mine.transpose(0, 1).unbind(3)
        self._keep(layer, "ulysses", all_key, all_value)
        rows = (all_query, *self._merged(layer, all_key, all_value))
        every = [joint.join(x, self._own_heads(text)) for x, text in zip(rows, texts, strict=True)]
        out = _attend(kernel, *every, joint=joint)
        if joint.tokens:  # a rank gets its own tokens' outputs, and every rank gets the text's
            video, text = joint.split(out)
            out = joint.interleave(video.split(list(counts), 1), [text] * comm.size)
        send = [count + joint.tokens for count in counts]
        back = comm.all_to_all(out.transpose(0, 1), send=send, receive=[each] * comm.size, what="attention")
        return back.unflatten(0, (comm.size, each)).permute(2, 1, 0, 3, 4).flatten(2, 3)

    def _own_heads(self, rows: Tensor) -> Tensor:
        return rows.tensor_split(self.comm.size, 2)[self.comm.rank]

    def _usp(self, layer: int, query: Tensor, key: Tensor, value: Tensor, kernel: Kernel, joint: Joint) -> Tensor:
        assert self.usp is not None
        assert not joint.tokens, "adapters refuse it"
        self._keep(layer, "allgather_q", key, value)
        return self.usp(query, key, value, self.rows.counts)

    def _allgather_kv(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, kernel: Kernel, joint: Joint
    ) -> Tensor:
        (key, text_key), (value, text_value) = joint.split(key), joint.split(value)
        self._keep(layer, "allgather_q", key, value)
        key, value = self._gather([key, value])
        self._keep(layer, "allgather_kv", key, value)
        self._keep(layer, "ulysses", self._own_heads(key), self._own_heads(value))
        key, value = self._merged(layer, key, value)
        return _attend(kernel, query, joint.join(key, text_key), joint.join(value, text_value), joint)

    def _allgather_q(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, kernel: Kernel, joint: Joint
    ) -> Tensor:
        comm, counts = self.comm, self.rows.counts
        (query, text_query), (key, text_key), (value, text_value) = map(joint.split, (query, key, value))
        if self.kept is not None and self.rows.own is not None:
            key, value = self.kept.merge(layer, self.rows.own, key, value)
        (everyone,) = self._gather([query])
        # Every rank has the text's queries: it collects the parts of a share of them, and tells the others.
        texts = text_query.tensor_split(comm.size, 1)
        asked = joint.interleave(everyone.split(list(counts), 1), texts) if joint.tokens else everyone
        sizes = [count + text.shape[1] for count, text in zip(counts, texts, strict=True)]
        outputs, totals = self._return_parts(*attention_part(asked, key, value), sizes, query.dtype)
        if joint.tokens:  # its keys count once: with whoever collects
            mine = joint.join(query, texts[comm.rank])
            by_text = attention_part(mine, text_key, text_value, joint.mask)
            outputs, totals = (torch.cat([x, part[None]]) for x, part in zip((outputs, totals), by_text, strict=True))
        merged = merge_parts(outputs, totals).to(query.dtype)
        return self._tell_text(merged, joint, [text.shape[1] for text in texts]) if joint.tokens else merged

    def _return_parts(self, out: Tensor, total: Tensor, sizes: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Partial outputs and log-sums of all ranks' queries in, those of this rank's from all ranks out.

        Outputs travel in the model's dtype, their fp32 log-sums bit for bit in the same message.
        """
        comm, width, dim = self.comm, dtype.itemsize, out.shape[-1]
        fits = width <= total.element_size()
        words = total[..., None].contiguous().view(dtype) if fits else total[..., None]
        packed = torch.cat([out.to(dtype), words.to(dtype)], -1).transpose(0, 1)
        own = sizes[comm.rank]
        back = comm.all_to_all(packed, send=sizes, receive=[own] * comm.size, what="attention")
        parts = back.unflatten(0, (comm.size, own)).permute(0, 2, 1, 3, 4)
        outputs, words = parts.split([dim, words.shape[-1]], -1)
        totals = words.contiguous().view(torch.float32) if fits else words.float()
        return outputs.float(), totals.squeeze(-1)

    def _tell_text(self, rows: Tensor, joint: Joint, shares: Sequence[int]) -> Tensor:
        """Own tokens with a share of the text in, own tokens with all of the text out."""
        video, text = replace(joint, tokens=shares[self.comm.rank]).split(rows)
        everyone = self.comm.all_gather(text.transpose(0, 1), shares, what="attention")
        return joint.join(video, everyone.transpose(0, 1))

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


def _attend(kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, joint: Joint) -> Tensor:
    """Nothing is asked where a rank has no row; some kernels die of it."""
    if not query.shape[1]:
        return torch.empty_like(query)
    mask = joint.key_mask(key.shape[1])
    return kernel(query, key, value) if mask is None else kernel(query, key, value, mask)
