"""Wan's self-attention with the attention itself left to `SequenceAttention`."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tapvideo.models.sequence_processor import SequenceProcessor


class WanSequenceProcessor(SequenceProcessor):
    """Projections, norms and rotary embedding as in the original; who attends to what is decided elsewhere."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "b n d"],
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """The signature is that of diffusers' processors; as self-attention there is neither context nor mask."""
        assert encoder_hidden_states is None
        assert attention_mask is None
        assert rotary_emb is not None
        query, key, value = self._project(attn, hidden_states)
        heads = (attn.heads, -1)
        query, key = attn.norm_q(query).unflatten(2, heads), attn.norm_k(key).unflatten(2, heads)
        query, key = rotate(query, *rotary_emb), rotate(key, *rotary_emb)
        attend: Any = self.attention  # torch types what `compiler.disable` returns as no method
        out = attend(self.layer, query, key, value.unflatten(2, heads), self._kernel)
        out = out.flatten(2, 3).type_as(query)
        return attn.to_out[1](attn.to_out[0](out))

    def _project(self, attn: Any, hidden: Tensor) -> tuple[Tensor, ...]:
        if attn.fused_projections:
            return attn.to_qkv(hidden).chunk(3, dim=-1)
        return attn.to_q(hidden), attn.to_k(hidden), attn.to_v(hidden)


def rotate(
    x: Float[Tensor, "b n h d"], cos: Float[Tensor, "#b n 1 d"], sin: Float[Tensor, "#b n 1 d"]
) -> Float[Tensor, "b n h d"]:
    """Rotary embedding of interleaved pairs, in Wan's order of operations, so that results agree to the bit."""
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    out = torch.empty_like(x)
    out[..., 0::2] = first * cos - second * sin
    out[..., 1::2] = first * sin + second * cos
    return out.type_as(x)
