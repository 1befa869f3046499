"""What a step tells, computes and keeps on one rank, in closed form: no weights, no other ranks.

Everything is of one guidance branch. Messages are named as the ledger names them, (kind of step, what), and count what
a rank receives from others. With even shares and f of T tokens recomputed, a layer of width d receives, in T d numbers:

    full step    ulysses 4 (P - 1) / P^2     allgather_kv 2 (P - 1) / P
    recompute    ulysses 4 f (P - 1) / P^2   allgather_kv 2 f (P - 1) / P
                 allgather_q f (P - 1) / P (2 + words / head_dim)

with `words` numbers for a query's fp32 log-sum: one in fp32, two in bf16. Where blocks attend jointly to m text tokens,
each pass receives for them, in m d numbers,

    ulysses (P - 1) / P     allgather_kv 0     allgather_q (P - 1) / P (2 + words / head_dim)

and its operations are not known here: they are those of blocks without a text stream.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from tapvideo.parallel.arch import Architecture
from tapvideo.parallel.kept import kept_bytes
from tapvideo.parallel.ledger import Tally

Kind = Literal["full", "forecast", "recompute"]
Messages = dict[tuple[str, str], Tally]

_EXACT = torch.float32.itemsize
_DOUBLE = torch.float64.itemsize


@dataclass(frozen=True, slots=True)
class Share:
    """How many rows every rank of a group has, and which rank we are."""

    counts: tuple[int, ...]
    rank: int = 0

    @classmethod
    def even(cls, rows: int, ranks: int, rank: int = 0) -> "Share":
        """Rows spread evenly; the first ranks have one more."""
        base, more = divmod(rows, ranks)
        return cls(tuple(base + (r < more) for r in range(ranks)), rank)

    @property
    def ranks(self) -> int:
        """Ranks of the group."""
        return len(self.counts)

    @property
    def own(self) -> int:
        """This rank's rows."""
        return self.counts[self.rank]

    @property
    def all(self) -> int:
        """All rows."""
        return sum(self.counts)

    @property
    def gathered(self) -> int:
        """Rows that a gather brings."""
        return self.all - self.own

    @property
    def returned(self) -> int:
        """Rows that come back where every other rank has worked on this rank's."""
        return self.own * (self.ranks - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """What of TAP decides on costs."""

    anchors: int = 3
    """Full steps that are remembered."""
    candidates: int = 15
    """Predictors to choose from."""
    has_probe: bool = True
    """Whether there is anything to choose, or to recompute."""
    probe_depth: int = 0
    """Blocks that run on every step for the probe."""
    proxy: str = "cosine"
    choice: str = "token"
    recomputes: bool = False
    """Whether keys and values are kept, and errors compared across ranks."""
    kv_dtype: str = "model"
    kv_layers: int | None = None
    """How many layers keep theirs; None is all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """One guidance branch on one rank."""

    arch: Architecture
    method: Method
    tokens: Share
    text: int
    """Tokens of the prompt."""
    dtype: torch.dtype
    full: str = "ulysses"
    """Attention of full steps, as `resolve` has it."""
    exchange: str = "ulysses"
    """Attention of recomputed tokens, as `resolve` has it."""
    token_timesteps: bool = False
    """Whether every token has its own timestep (Wan 2.2 TI2V): then features are gathered, not what the head makes."""
    batch: int = 1
    joint_text: int = 0
    """Text tokens that the blocks attend to jointly with the video's, on every rank."""
    twin: bool = False
    """Whether it comes after another one with the same latents, whose probe it has, and whose errors."""

    @property
    def _row(self) -> int:
        """Bytes of a token's features."""
        return self.batch * self.arch.dim * self.dtype.itemsize

    @property
    def _keeping(self) -> int:
        """Layers that keep keys and values."""
        layers = self.method.kv_layers
        return 0 if not self.method.recomputes else self.arch.layers if layers is None else layers

    @property
    def _probes(self) -> bool:
        """Whether it makes probes, and keeps them; those of blocks have seen its text, and are its own."""
        return self.method.has_probe and not (self.twin and not self.method.probe_depth)

    # -- messages

    def messages(self, kind: Kind, rows: Share | None = None) -> Messages:
        """What one step receives; `rows` are the recomputed tokens."""
        if self.tokens.ranks == 1:
            return {}
        if kind == "full":
            return self._named("full", attention=self._attention(self.tokens, self.full, self.arch.layers))
        told: dict[str, Tally] = {"errors": self._errors()}
        if self.method.probe_depth:
            told["attention"] = self._attention(self.tokens, self.full, self.method.probe_depth)
        if rows is None or not rows.all:
            return self._named("forecast", **told)
        before = {("forecast", what): tally for what, tally in told.items() if tally.calls}
        return before | self._named("recompute", attention=self._attention(rows, self.exchange, self.arch.layers))

    def layer_messages(self, kind: Kind, rows: Share | None = None) -> Tally:
        """What one layer of a full or recompute step receives."""
        if self.tokens.ranks == 1 or kind == "forecast":
            return Tally()
        return self._attention(self.tokens, self.full, 1) if rows is None else self._attention(rows, self.exchange, 1)

    def guidance_bytes(self) -> int:
        """What the other guidance branch's prediction takes, if other ranks make it."""
        return self.batch * self.tokens.all * self.arch.out_numbers * self.dtype.itemsize

    def _named(self, kind: str, **told: Tally) -> Messages:
        told["output"] = Tally(self.tokens.gathered * self._output_row, 1)
        return {(kind, what): tally for what, tally in told.items() if tally.calls}

    @property
    def _output_row(self) -> int:
        numbers = self.arch.dim if self.token_timesteps else self.arch.out_numbers
        return self.batch * numbers * self.dtype.itemsize

    def _errors(self) -> Tally:
        """Means over all ranks where one predictor is chosen for a clip; every token's, to decide what is stale."""
        told, method = Tally(), self.method
        if method.has_probe and method.choice == "sample":
            told.bytes += (self.batch * method.candidates + 1) * _DOUBLE * (self.tokens.ranks - 1)
            told.calls += 1
        if method.recomputes:
            told.bytes += self.tokens.gathered * _EXACT
            told.calls += 1
        return told

    def _attention(self, rows: Share, exchange: str, layers: int) -> Tally:
        """Of some layers; the rows are those that take part."""
        text = Share.even(self.joint_text, rows.ranks, rows.rank)
        if exchange == "ulysses":  # q, k, v of all rows for a share of the heads; outputs of own rows for the others
            told = 3 * rows.gathered + rows.returned + self.joint_text * (rows.ranks - 1)
            received, calls = told * self._row // rows.ranks, 2
        elif exchange == "allgather_kv":
            received, calls = 2 * rows.gathered * self._row, 1
        else:  # parts of own rows, and of a share of the text, whose outputs are then gathered
            sums = self.batch * self.arch.heads * max(_EXACT, self.dtype.itemsize)
            received = (rows.gathered + text.gathered) * self._row
            received += (rows.returned + text.returned) * (self._row + sums)
            calls = 3 if self.joint_text else 2
        return Tally(layers * received, layers * calls)

    # -- operations

    def flops(self, kind: Kind, rows: Share | None = None) -> int:
        """Multiplications and additions of one step's matrix products and attention."""
        method, arch = self.method, self.arch
        timesteps, heads = (self.tokens.all, self.tokens.all) if self.token_timesteps else (1, self.tokens.own)
        reads_text = kind == "full" or method.probe_depth > 0 or method.recomputes  # of all that may run a block
        text = self.text if reads_text else 0
        outside = arch.embedding_flops(self.tokens.all, text, timesteps) + arch.head_flops(heads)
        everyone = self._layer_flops(self.tokens, self.full, keys=None)
        if kind == "full":
            return self.batch * (outside + arch.layers * everyone)
        total = outside + method.probe_depth * everyone
        if self._probes:
            size = method.anchors + 1
            forms = size * size * method.candidates + (size * method.candidates if method.proxy == "cosine" else 0)
            total += 2 * self.tokens.own * (size * size * arch.dim + forms)
        if rows is not None and rows.all:
            keeping = self._keeping
            total += keeping * self._layer_flops(rows, self.exchange, keys=self.tokens)
            total += (arch.layers - keeping) * self._layer_flops(rows, self.exchange, keys=None)
        return self.batch * total

    def _layer_flops(self, rows: Share, exchange: str, *, keys: Share | None) -> int:
        """Of a block for these rows, which attend to the keys of `keys` (None is their own)."""
        keys = keys or rows
        if exchange == "ulysses" or rows.ranks == 1:
            products = rows.all * keys.all * (self.arch.dim // rows.ranks)
        elif exchange == "allgather_kv":
            products = rows.own * keys.all * self.arch.dim
        else:
            products = rows.all * keys.own * self.arch.dim
        return self.arch.block_flops(rows.own, self.text) + 4 * products

    def traffic(self, kind: Kind) -> int:
        """Bytes that a forecast must read from and write to memory, which is what bounds it; 0 of other steps.

        The embedding of all tokens is written, and copied in order; then this rank's are read with their anchors, and
        their forecast is written.
        """
        if kind == "full":
            return 0
        streams = 1 + self._probes
        return self._row * (3 * self.tokens.all + self.tokens.own * (2 + streams * self.method.anchors))

    # -- memory

    def anchor_bytes(self) -> int:
        """Of probes and residuals of all anchors."""
        streams = 1 + self._probes
        return streams * self.method.anchors * self.tokens.own * self._row

    def kept_kv_bytes(self) -> int:
        """Of the keys and values that layers keep, on the GPU or wherever they are offloaded to."""
        slots, heads = {
            "ulysses": (self.tokens.all, self.arch.heads // self.tokens.ranks),
            "allgather_kv": (self.tokens.all, self.arch.heads),
            "allgather_q": (self.tokens.own, self.arch.heads),
        }[self.exchange if self.tokens.ranks > 1 else "allgather_kv"]
        dim = self.arch.head_dim
        each = kept_bytes(self.batch * slots * heads * dim, dim, dtype=self.dtype, kv_dtype=self.method.kv_dtype)
        return 2 * each * self._keeping
