"""Qwen-Image's joint attention with the attention itself left to `SequenceAttention`."""

from typing import Any

import torch
from diffusers.models.transformers.transformer_qwenimage import apply_rotary_emb_qwen
from jaxtyping import Float, Shaped
from torch import Tensor

from tapvideo.models.sequence_processor import SequenceProcessor
from tapvideo.parallel.attention import Joint


class QwenSequenceProcessor(SequenceProcessor):
    """Projections, norms and rotary embedding as in diffusers' processor; who attends to what is decided elsewhere."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "b n d"],
        encoder_hidden_states: Float[Tensor, "b m d"],
        encoder_hidden_states_mask: Shaped[Tensor, "b m"] | None = None,
        attention_mask: None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b m d"]]:
        """The signature is that of diffusers' processor; the mask is the text's."""
        text = encoder_hidden_states.shape[1]
        image_table, text_table = image_rotary_emb or (None, None)
        image = self._project(attn, hidden_states, ("to_q", "to_k", "to_v"))
        added = self._project(attn, encoder_hidden_states, ("add_q_proj", "add_k_proj", "add_v_proj"))
        query = torch.cat(
            [_place(attn.norm_added_q, added[0], text_table), _place(attn.norm_q, image[0], image_table)], 1
        )
        key = torch.cat(
            [_place(attn.norm_added_k, added[1], text_table), _place(attn.norm_k, image[1], image_table)], 1
        )
        value = torch.cat([added[2], image[2]], 1)
        mask = None if encoder_hidden_states_mask is None else encoder_hidden_states_mask.bool()
        attend: Any = self.attention  # torch types what `compiler.disable` returns as no method
        out = attend(self.layer, query, key, value, self._kernel, Joint(text, is_first=True, mask=mask))
        out = out.flatten(2, 3).to(query.dtype)
        image_out = attn.to_out[1](attn.to_out[0](out[:, text:].contiguous()))
        return image_out, attn.to_add_out(out[:, :text].contiguous())

    def _project(self, attn: Any, rows: Tensor, names: tuple[str, str, str]) -> tuple[Tensor, ...]:
        head_dim = attn.inner_dim // attn.heads
        return tuple(getattr(attn, name)(rows).unflatten(-1, (-1, head_dim)) for name in names)


def _place(norm: Any, rows: Tensor, table: Tensor | None) -> Tensor:
    """Normalised, and turned by its position."""
    rows = rows if norm is None else norm(rows)
    turn: Any = apply_rotary_emb_qwen  # annotated for what it gives out elsewhere
    return rows if table is None else turn(rows, table, use_real=False)
