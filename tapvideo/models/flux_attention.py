"""FLUX's joint attention with the attention itself left to `SequenceAttention`."""

from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from jaxtyping import Float
from torch import Tensor

from tapvideo.models.sequence_processor import SequenceProcessor
from tapvideo.parallel.attention import Joint


class FluxSequenceProcessor(SequenceProcessor):
    """Projections, norms and rotary embedding as in `FluxAttnProcessor`; who attends to what is decided elsewhere.

    Single-stream blocks hand over text and tokens as one; how many of these are text, the attention's rows tell.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "b n d"],
        encoder_hidden_states: Float[Tensor, "b m d"] | None = None,
        attention_mask: None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Float[Tensor, "b n d"] | tuple[Float[Tensor, "b n d"], Float[Tensor, "b m d"]]:
        """The signature is that of diffusers' processors; FLUX has no mask."""
        text = hidden_states.shape[1] - self.attention.num_rows
        query, key, value = self._project(attn, hidden_states, ("to_q", "to_k", "to_v"), "to_qkv")
        query, key = attn.norm_q(query), attn.norm_k(key)
        if encoder_hidden_states is not None:
            text = encoder_hidden_states.shape[1]
            names = ("add_q_proj", "add_k_proj", "add_v_proj")
            added_query, added_key, added_value = self._project(attn, encoder_hidden_states, names, "to_added_qkv")
            query = torch.cat([attn.norm_added_q(added_query), query], 1)
            key = torch.cat([attn.norm_added_k(added_key), key], 1)
            value = torch.cat([added_value, value], 1)
        if image_rotary_emb is not None:
            query, key = (apply_rotary_emb(x, image_rotary_emb, sequence_dim=1) for x in (query, key))
        attend: Any = self.attention  # torch types what `compiler.disable` returns as no method
        out = attend(self.layer, query, key, value, self._kernel, Joint(text, is_first=True))
        out = out.flatten(2, 3).to(query.dtype)
        if encoder_hidden_states is None:
            return out
        text_out, video_out = out[:, :text].contiguous(), out[:, text:].contiguous()
        return attn.to_out[1](attn.to_out[0](video_out)), attn.to_add_out(text_out)

    def _project(self, attn: Any, rows: Tensor, names: tuple[str, str, str], fused: str) -> tuple[Tensor, ...]:
        if attn.fused_projections and hasattr(attn, fused):
            parts = getattr(attn, fused)(rows).chunk(3, dim=-1)
        else:
            parts = [getattr(attn, name)(rows) for name in names]
        return tuple(part.unflatten(-1, (-1, attn.head_dim)) for part in parts)
