"""LTX-2 (`LTX2VideoTransformer3DModel`): video and sound go through the same blocks and attend to each other."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers.models.transformers.transformer_ltx2 import (
    LTX2AudioVideoAttnProcessor,
    LTX2PerturbedAttnProcessor,
    LTX2VideoTransformerBlock,
)
from jaxtyping import Float, Int64
from torch import Tensor, nn

from tapvideo.models.base import Call
from tapvideo.models.ltx import LTXAdapter, modulated
from tapvideo.models.ltx2_attention import LTX2SequenceProcessor
from tapvideo.models.sequence_processor import SequenceProcessor
from tapvideo.parallel.attention import SequenceAttention
from tapvideo.stream import Stream

_TOKENS = ("hidden_states", "audio_hidden_states")
_ROTARY = ("video_rotary_emb", "ca_video_rotary_emb")
_PER_TIMESTEP = ("temb", "temb_ca_scale_shift", "temb_ca_gate")
_WHOLE = ("perturbation_mask", "all_perturbed")


class LTX2Adapter(LTXAdapter):
    """Probe and blocks of `LTX2VideoTransformer3DModel`; the sound is the video's companion."""

    rotary = ("rope", "audio_rope", "cross_attn_rope", "cross_attn_audio_rope")
    processor_classes = (LTX2AudioVideoAttnProcessor, LTX2PerturbedAttnProcessor)
    stand_in = LTX2SequenceProcessor

    def __init__(self) -> None:
        self._perturbed: frozenset[nn.Module] = frozenset()
        self._perturbation: dict[str, Any] = {}

    def see(self, transformer: nn.Module, call: Call) -> None:
        """Note the blocks in which spatio-temporal guidance leaves tokens with their own values, as the model does."""
        asked, mask = call.get("spatio_temporal_guidance_blocks") or (), call.get("perturbation_mask")
        blocks: Any = transformer.transformer_blocks
        self._perturbed = frozenset(block for i, block in enumerate(blocks) if i in asked)
        if len(asked) and mask is None:
            mask = torch.zeros(len(call["hidden_states"]))
        if mask is not None and mask.ndim == 1:
            mask = mask[:, None, None]
        every = mask is not None and bool(torch.all(mask == 0))
        self._perturbation = dict(zip(_WHOLE, (mask, every), strict=True))

    def stream(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Stream:
        """Tokens of video and sound; all else goes by its name."""
        assert not args, "the model's forward names all arguments"
        rest = {name: value for name, value in kwargs.items() if name not in _TOKENS}
        companion = Stream(kwargs["audio_hidden_states"], rest=(rest,))
        return Stream(kwargs["hidden_states"], rest=(rest,), companion=companion)

    def run(self, block: nn.Module, stream: Stream) -> Stream:
        """One block, perturbed or not."""
        assert stream.companion is not None
        (rest,) = stream.rest
        own = self._perturbation if block in self._perturbed else {"perturbation_mask": None, "all_perturbed": False}
        hidden, audio = block(
            hidden_states=stream.hidden, audio_hidden_states=stream.companion.hidden, **{**rest, **own}
        )
        return replace(stream, hidden=hidden, companion=replace(stream.companion, hidden=audio))

    def result(self, stream: Stream) -> tuple[Tensor, Tensor]:
        """Tokens of video and sound."""
        assert stream.companion is not None
        return stream.hidden, stream.companion.hidden

    def read_result(self, result: Any) -> tuple[Float[Tensor, "b n d"], None]:
        """The video's tokens; there is no text that blocks change."""
        return result[0], None

    def modulated_input(self, block: nn.Module, stream: Stream) -> Float[Tensor, "b n d"]:
        """As in `LTX2VideoTransformerBlock.forward`, for the video or, of the companion, for the sound."""
        assert isinstance(block, LTX2VideoTransformerBlock)
        (rest,) = stream.rest
        if stream.companion is None:
            return modulated(block.audio_norm1, block.audio_scale_shift_table, rest["temb_audio"], stream.hidden)
        return modulated(block.norm1, block.scale_shift_table, rest["temb"], stream.hidden)

    def take_tokens(self, stream: Stream, positions: Int64[Tensor, " n"]) -> Stream:
        """The video's rotary tables go by position, and so do timesteps where every token has its own."""
        (rest,), tokens = stream.rest, stream.hidden.shape[1]
        own = {n: tuple(t.index_select(t.ndim - 2, positions) for t in rest[n]) for n in _ROTARY}
        own |= {n: rest[n].index_select(1, positions) for n in _PER_TIMESTEP if rest[n].shape[1] == tokens}
        return replace(stream, hidden=stream.hidden.index_select(1, positions), rest=({**rest, **own},))

    def attentions(self, blocks: Sequence[nn.Module]) -> list[Any]:
        """Of every block, that of the video to itself and that of the sound to the video."""
        return [attention for block in blocks for attention in (block.attn1, block.video_to_audio_attn)]

    def processor(self, original: Any, layer: int, attention: SequenceAttention) -> SequenceProcessor:
        """Attention to tokens that are spread over ranks, or partly kept from earlier steps.

        Raises:
            ValueError: if the model's processor is not diffusers' own.
        """
        return super().processor(original, layer // 2, attention)
