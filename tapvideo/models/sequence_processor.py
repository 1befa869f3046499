"""What all stand-ins for diffusers' attention processors have in common."""

from typing import Any

from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor

from tapvideo.parallel.attention import SequenceAttention


class SequenceProcessor:
    """Leaves the attention to `SequenceAttention`, which asks for a kernel: that of the model's attention backend."""

    def __init__(self, original: Any, layer: int, attention: SequenceAttention) -> None:
        self.original = original
        self.layer = layer
        self.attention = attention

    @property
    def _attention_backend(self) -> Any:
        """What diffusers' `set_attention_backend` sets, on every processor that has one."""
        return self.original._attention_backend

    @_attention_backend.setter
    def _attention_backend(self, backend: Any) -> None:
        self.original._attention_backend = backend

    def _kernel(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """The attention backend that the model is set to."""
        return dispatch_attention_fn(
            query, key, value, attn_mask=mask, dropout_p=0.0, is_causal=False, backend=self._attention_backend
        )
