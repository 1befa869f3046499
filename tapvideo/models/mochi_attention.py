"""Mochi's joint attention with the attention itself left to `SequenceAttention`."""

from typing import Any

import torch
from diffusers.models.attention_processor import MochiAttention
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional

from tapvideo.parallel.attention import Joint, SequenceAttention


class MochiSelfAttention:
    """A `MochiAttention` with the `set_processor` that diffusers' other attentions have."""

    def __init__(self, attention: MochiAttention) -> None:
        self.attention = attention
        self.heads = attention.heads
        self.inner_dim = attention.inner_dim

    @property
    def processor(self) -> Any:
        """The one in use."""
        return self.attention.processor

    def set_processor(self, processor: Any) -> None:
        """Use another."""
        self.attention.processor = processor


class MochiSequenceProcessor:
    """Projections, norms and rotary embedding as in `MochiAttnProcessor2_0`; who attends to what is decided elsewhere.

    Diffusers leaves padded text out, clip by clip; here it is there and nothing attends to it.
    """

    def __init__(self, layer: int, attention: SequenceAttention) -> None:
        self.layer = layer
        self.attention = attention

    def __call__(
        self,
        attn: MochiAttention,
        hidden_states: Float[Tensor, "b n d"],
        encoder_hidden_states: Float[Tensor, "b m e"],
        attention_mask: Shaped[Tensor, "b m"],
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b m out"]]:
        """The signature is that of diffusers' processor; the mask is the text's, whose output the last block drops."""
        video, text = hidden_states.shape[1], encoder_hidden_states.shape[1]
        query, key, value = (p(hidden_states).unflatten(2, (attn.heads, -1)) for p in (attn.to_q, attn.to_k, attn.to_v))
        query, key = attn.norm_q(query), attn.norm_k(key)
        added = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        text_query, text_key, text_value = (p(encoder_hidden_states).unflatten(2, (attn.heads, -1)) for p in added)
        text_query, text_key = attn.norm_added_q(text_query), attn.norm_added_k(text_key)
        if image_rotary_emb is not None:
            query, key = rotate(query, *image_rotary_emb), rotate(key, *image_rotary_emb)
        pairs = ((query, text_query), (key, text_key), (value, text_value))
        query, key, value = (torch.cat(pair, 1) for pair in pairs)
        attend: Any = self.attention  # torch types what `compiler.disable` returns as no method
        out = attend(self.layer, query, key, value, _kernel, Joint(text, mask=attention_mask.bool()))
        video_out, text_out = out.flatten(2, 3).split([video, text], 1)
        video_out = attn.to_out[1](attn.to_out[0](video_out))
        return video_out, text_out if attn.context_pre_only else attn.to_add_out(text_out)


def rotate(
    x: Float[Tensor, "b n h d"], cos: Float[Tensor, "n h half"], sin: Float[Tensor, "n h half"]
) -> Float[Tensor, "b n h d"]:
    """Rotary embedding of interleaved pairs, in fp32, by angles that every head has learned for itself."""
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    turned = (even * cos - odd * sin).to(x.dtype), (even * sin + odd * cos).to(x.dtype)
    return torch.stack(turned, -1).flatten(-2)


def _kernel(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Torch's own attention, as diffusers' processor has it."""
    by_head = (x.transpose(1, 2) for x in (query, key, value))
    return functional.scaled_dot_product_attention(*by_head, attn_mask=mask).transpose(1, 2)
