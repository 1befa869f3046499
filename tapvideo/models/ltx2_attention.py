"""LTX-2's attention to the video's tokens with the attention itself left to tapvideo: the video's, and the sound's."""

from functools import partial
from typing import Any

import torch
from diffusers.models.transformers.transformer_ltx2 import (
    LTX2Attention,
    apply_interleaved_rotary_emb,
    apply_split_rotary_emb,
)
from jaxtyping import Float
from torch import Tensor

from tapvideo.models.sequence_processor import SequenceProcessor
from tapvideo.parallel.spread import attend_to_spread


class LTX2SequenceProcessor(SequenceProcessor):
    """All that `LTX2AudioVideoAttnProcessor` and `LTX2PerturbedAttnProcessor` do, but for who attends to what."""

    def __call__(
        self,
        attn: LTX2Attention,
        hidden_states: Float[Tensor, "b n d"],
        encoder_hidden_states: Float[Tensor, "b m e"] | None = None,
        attention_mask: Tensor | None = None,
        query_rotary_emb: tuple[Tensor, Tensor] | None = None,
        key_rotary_emb: tuple[Tensor, Tensor] | None = None,
        perturbation_mask: Tensor | None = None,
        all_perturbed: Any = None,
    ) -> Float[Tensor, "b n d"]:
        """The signature is that of diffusers' processors; with a context, queries are the sound's and keys the video's.

        Raises:
            ValueError: if there is a mask, which would have to be of all ranks' tokens.
        """
        if attention_mask is not None:
            raise ValueError("sharing tokens and recomputing them do not work with video_self_attention_mask")
        if all_perturbed:  # every token is left with its own value
            more = {"perturbation_mask": perturbation_mask, "all_perturbed": all_perturbed}
            return self.original(attn, hidden_states, encoder_hidden_states, **more)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(context)), attn.to_v(context)
        if query_rotary_emb is not None:
            rotate = apply_split_rotary_emb if attn.rope_type == "split" else apply_interleaved_rotary_emb
            query = rotate(query, query_rotary_emb)
            key = rotate(key, query_rotary_emb if key_rotary_emb is None else key_rotary_emb)
        heads = [x.unflatten(2, (attn.heads, -1)) for x in (query, key, value)]
        is_own = encoder_hidden_states is None
        attend: Any = self.attention if is_own else partial(attend_to_spread, self.attention)
        out = attend(self.layer, *heads, self._kernel)
        if perturbation_mask is not None:  # some clips of a batch
            out = torch.lerp(heads[2], out, perturbation_mask[..., None])
        if attn.to_gate_logits is not None:
            out = out * (2 * torch.sigmoid(attn.to_gate_logits(hidden_states)))[..., None]
        return attn.to_out[1](attn.to_out[0](out.flatten(2, 3).to(query.dtype)))
