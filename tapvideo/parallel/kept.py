"""Keys and values that layers keep between full steps, for tokens that are recomputed to attend to.

Slots are rows of the cache: which tokens a rank has in which slot is the exchange's business (`attention.py`).
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int64
from torch import Tensor

KV_DTYPES = ("model", "fp8")
_FP8 = torch.float8_e4m3fn
_TINY = 1e-12


def kept_bytes(elements: int, head_dim: int, *, dtype: torch.dtype, kv_dtype: str) -> int:
    """Bytes of that many numbers of heads of `head_dim`, kept in `kv_dtype`."""
    if kv_dtype == "fp8":
        return elements + elements // head_dim * torch.float16.itemsize
    return elements * dtype.itemsize


@dataclass(frozen=True, slots=True)
class KeepOptions:
    """What is kept, and where."""

    kv_dtype: str = "model"
    """`model`, or `fp8`: e4m3 with one scale a token and head, about half of bf16."""
    layers: frozenset[int] | None = None
    """Layers that keep; None is all. In the others recomputed tokens attend to each other alone."""
    offload: bool = False
    """Keep on the CPU."""

    def keeps(self, layer: int) -> bool:
        """Whether a layer keeps its keys and values; those that a companion attends to are filed under `~layer`."""
        return self.layers is None or max(layer, ~layer) in self.layers


@dataclass(slots=True)
class Stored:
    """One tensor [b, slots, h, d], as it is or as fp8 with scales."""

    data: Tensor
    scale: Float[Tensor, "b slots h 1"] | None

    @classmethod
    def of(cls, value: Float[Tensor, "b slots h d"], options: KeepOptions) -> "Stored":
        """A copy, encoded and placed as asked for."""
        data, scale = _encode(value, options.kv_dtype)
        if options.offload:
            data, scale = data.cpu(), None if scale is None else scale.cpu()
        return cls(data.clone() if data is value else data, scale)

    def load(self, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "b slots h d"]:
        """The tensor, ready to compute with."""
        data = self.data.to(device)
        if self.scale is None:
            return data
        return (data.view(_FP8).float() * self.scale.to(device).float()).to(dtype)

    def update(self, slots: Int64[Tensor, " n"], value: Float[Tensor, "b n h d"]) -> None:
        """Write fresh rows over what the slots hold."""
        data, scale = _encode(value, "model" if self.scale is None else "fp8")
        slots = slots.to(self.data.device)
        self.data.index_copy_(1, slots, data.to(self.data))
        if self.scale is not None and scale is not None:
            self.scale.index_copy_(1, slots, scale.to(self.scale))

    @property
    def num_bytes(self) -> int:
        """Bytes it takes."""
        both = (self.data,) if self.scale is None else (self.data, self.scale)
        return sum(t.numel() * t.element_size() for t in both)


@dataclass(slots=True)
class KeptKV:
    """Keys and values of one branch, by layer."""

    options: KeepOptions
    layers: dict[int, tuple[Stored, Stored]] = field(default_factory=dict[int, tuple[Stored, Stored]])

    def put(self, layer: int, key: Float[Tensor, "b slots h d"], value: Float[Tensor, "b slots h d"]) -> None:
        """Keep a full step's, in place of what there was."""
        if self.options.keeps(layer):
            self.layers[layer] = (Stored.of(key, self.options), Stored.of(value, self.options))

    def merge(
        self,
        layer: int,
        slots: Int64[Tensor, " n"],
        key: Float[Tensor, "b n h d"],
        value: Float[Tensor, "b n h d"],
    ) -> tuple[Float[Tensor, "b slots h d"], Float[Tensor, "b slots h d"]]:
        """Write fresh rows over their slots, and return everything there is to attend to."""
        if layer not in self.layers:
            return key, value
        for stored, fresh in zip(self.layers[layer], (key, value), strict=True):
            stored.update(slots, fresh)
        kept_key, kept_value = (stored.load(key.device, key.dtype) for stored in self.layers[layer])
        if self.options.kv_dtype != "model":  # fresh rows are at hand in full precision
            kept_key, kept_value = (
                kept.index_copy(1, slots, fresh) for kept, fresh in ((kept_key, key), (kept_value, value))
            )
        return kept_key, kept_value

    def clear(self) -> None:
        """Forget everything."""
        self.layers.clear()

    @property
    def num_bytes(self) -> int:
        """Bytes of all layers."""
        return sum(stored.num_bytes for pair in self.layers.values() for stored in pair)


def _encode(value: Tensor, kv_dtype: str) -> tuple[Tensor, Tensor | None]:
    """As it is, or as e4m3 seen as bytes (which every device can move and index) with half-precision scales."""
    if kv_dtype == "model":
        return value, None
    most = torch.finfo(_FP8).max
    scale = (value.float().abs().amax(-1, keepdim=True) / most).clamp_min(_TINY).half().clamp_min(2.0**-24)
    return (value.float() / scale.float()).clamp(-most, most).to(_FP8).view(torch.uint8), scale
