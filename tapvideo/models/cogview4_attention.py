"""CogView4's joint attention with the attention itself left to `SequenceAttention`."""

from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from tapvideo.parallel.attention import Joint, SequenceAttention


class CogView4SequenceProcessor:
    """Projections, norms and rotary embedding as in diffusers' processor; who attends to what is decided elsewhere."""

    def __init__(self, layer: int, attention: SequenceAttention) -> None:
        self.layer = layer
        self.attention = attention

    def __call__(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "b n d"],
        encoder_hidden_states: Float[Tensor, "b m d"],
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b m d"]]:
        """The signature is that of diffusers' processor.

        Raises:
            ValueError: with a mask, which diffusers 0.42 adds to the scores as zeros and ones; its pipeline gives none.
        """
        if attention_mask is not None:
            raise ValueError("sharing tokens and recomputing them works with CogView4 without an attention mask only")
        text = encoder_hidden_states.shape[1]
        rows = torch.cat([encoder_hidden_states, hidden_states], 1)
        query, key, value = (p(rows).unflatten(2, (attn.heads, -1)) for p in (attn.to_q, attn.to_k, attn.to_v))
        query, key = attn.norm_q(query).to(rows.dtype), attn.norm_k(key).to(rows.dtype)
        if image_rotary_emb is not None:
            query, key = (_rotate(x, text, image_rotary_emb) for x in (query, key))
        attend: Any = self.attention  # torch types what `compiler.disable` returns as no method
        out = attend(self.layer, query, key, value, _kernel, Joint(text, is_first=True))
        out = attn.to_out[1](attn.to_out[0](out.flatten(2, 3).type_as(query)))
        return out[:, text:], out[:, :text]


def _rotate(rows: Tensor, text: int, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Of the image's rows only; text has no positions."""
    turned = apply_rotary_emb(rows[:, text:], tables, use_real_unbind_dim=-2, sequence_dim=1)
    return torch.cat([rows[:, :text], turned], 1)


def _kernel(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Torch's own attention, as diffusers' processor has it."""
    by_head = (x.transpose(1, 2) for x in (query, key, value))
    return functional.scaled_dot_product_attention(*by_head, attn_mask=mask).transpose(1, 2)
