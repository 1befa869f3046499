"""LTX's self-attention with the attention itself left to `SequenceAttention`."""

from typing import Any

from diffusers.models.transformers.transformer_ltx import LTXAttention, apply_rotary_emb
from jaxtyping import Float
from torch import Tensor

from tapvideo.models.sequence_processor import SequenceProcessor


class LTXSequenceProcessor(SequenceProcessor):
    """Projections, norms and rotary embedding as `LTXVideoAttnProcessor` has them; who attends to what is not."""

    def __call__(
        self,
        attn: LTXAttention,
        hidden_states: Float[Tensor, "b n d"],
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """The signature is that of diffusers' processors; as self-attention there is neither context nor mask."""
        assert encoder_hidden_states is None
        assert attention_mask is None
        assert image_rotary_emb is not None
        query = apply_rotary_emb(attn.norm_q(attn.to_q(hidden_states)), image_rotary_emb)
        key = apply_rotary_emb(attn.norm_k(attn.to_k(hidden_states)), image_rotary_emb)
        query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in (query, key, attn.to_v(hidden_states)))
        attend: Any = self.attention  # torch types what `compiler.disable` returns as no method
        out = attend(self.layer, query, key, value, self._kernel)
        out = out.flatten(2, 3).type_as(query)
        return attn.to_out[1](attn.to_out[0](out))
