"""HunyuanVideo's joint attention with the attention itself left to `SequenceAttention`."""

from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import apply_rotary_emb
from jaxtyping import Bool, Float
from torch import Tensor

from tapvideo.models.sequence_processor import SequenceProcessor
from tapvideo.parallel.attention import Joint


class HunyuanSequenceProcessor(SequenceProcessor):
    """Projections, norms and rotary embedding as in diffusers' processor; who attends to what is decided elsewhere.

    Dual-stream blocks project text by weights of its own, single-stream blocks by the video's.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "b n d"],
        encoder_hidden_states: Float[Tensor, "b m d"],
        attention_mask: Bool[Tensor, "b 1 1 all"] | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b m d"]]:
        """The signature is that of diffusers' processors; of the mask only the text's part says anything."""
        video, text = hidden_states.shape[1], encoder_hidden_states.shape[1]
        if attn.add_q_proj is None:
            hidden_states = torch.cat([hidden_states, encoder_hidden_states], 1)
        query, key, value = (_by_head(attn, p(hidden_states)) for p in (attn.to_q, attn.to_k, attn.to_v))
        query, key = _norm(attn.norm_q, query), _norm(attn.norm_k, key)
        if image_rotary_emb is not None:
            query, key = (_rotate(x, video, image_rotary_emb) for x in (query, key))
        if attn.add_q_proj is not None:
            added = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            text_query, text_key, text_value = (_by_head(attn, p(encoder_hidden_states)) for p in added)
            text_query, text_key = _norm(attn.norm_added_q, text_query), _norm(attn.norm_added_k, text_key)
            pairs = ((query, text_query), (key, text_key), (value, text_value))
            query, key, value = (torch.cat(pair, 1) for pair in pairs)
        mask = None if attention_mask is None else attention_mask[:, 0, 0, -text:]
        attend: Any = self.attention  # torch types what `compiler.disable` returns as no method
        out = attend(self.layer, query, key, value, self._kernel, Joint(text, mask=mask))
        video_out, text_out = out.flatten(2, 3).to(query.dtype).split([video, text], 1)
        if attn.to_out is not None:
            video_out = attn.to_out[1](attn.to_out[0](video_out))
        if attn.to_add_out is not None:
            text_out = attn.to_add_out(text_out)
        return video_out, text_out


def _by_head(attn: Attention, rows: Tensor) -> Tensor:
    return rows.unflatten(2, (attn.heads, -1))


def _norm(norm: Any, rows: Tensor) -> Tensor:
    return rows if norm is None else norm(rows)


def _rotate(rows: Tensor, video: int, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Of the video's rows only; text has no positions."""
    rotated: Any = apply_rotary_emb(rows[:, :video], tables, sequence_dim=1)
    return rotated if rows.shape[1] == video else torch.cat([rotated, rows[:, video:]], 1)
