"""CogVideoX's joint attention with the attention itself left to `SequenceAttention`."""

from typing import Any

import torch
from diffusers.models.attention_processor import (
    Attention,
    CogVideoXAttnProcessor2_0,
    FusedCogVideoXAttnProcessor2_0,
)
from diffusers.models.embeddings import apply_rotary_emb
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from tapvideo.parallel.attention import Joint, SequenceAttention

OWN_PROCESSORS = (CogVideoXAttnProcessor2_0, FusedCogVideoXAttnProcessor2_0)


class CogVideoXSequenceProcessor:
    """Projections, norms and rotary embedding as in diffusers' processors; who attends to what is decided elsewhere."""

    def __init__(
        self,
        original: CogVideoXAttnProcessor2_0 | FusedCogVideoXAttnProcessor2_0,
        layer: int,
        attention: SequenceAttention,
    ) -> None:
        self.original = original
        self.layer = layer
        self.attention = attention

    def __call__(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "b n d"],
        encoder_hidden_states: Float[Tensor, "b m d"],
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b m d"]]:
        """The signature is that of diffusers' processors; text is padded here, and padding is attended to."""
        assert attention_mask is None
        text, video = encoder_hidden_states.shape[1], hidden_states.shape[1]
        rows = torch.cat([encoder_hidden_states, hidden_states], 1)
        query, key, value = (x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in self._project(attn, rows))
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        if image_rotary_emb is not None:
            for x in (query, key):
                x[:, :, text:] = apply_rotary_emb(x[:, :, text:], image_rotary_emb)
        attend: Any = self.attention  # torch types what `compiler.disable` returns as no method
        by_row = (x.transpose(1, 2) for x in (query, key, value))
        out = attend(self.layer, *by_row, _kernel, Joint(text, is_first=True)).flatten(2, 3)
        assert attn.to_out is not None
        out = attn.to_out[1](attn.to_out[0](out))
        text_out, video_out = out.split([text, video], 1)
        return video_out, text_out

    def _project(self, attn: Attention, rows: Tensor) -> tuple[Tensor, ...]:
        if isinstance(self.original, FusedCogVideoXAttnProcessor2_0):
            return attn.to_qkv(rows).chunk(3, dim=-1)
        return attn.to_q(rows), attn.to_k(rows), attn.to_v(rows)


def _kernel(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Torch's, as diffusers' processors of this model: they know no attention backends."""
    by_head = (x.transpose(1, 2) for x in (query, key, value))
    return functional.scaled_dot_product_attention(*by_head).transpose(1, 2)
