"""Mochi (`MochiTransformer3DModel`)."""

from collections.abc import Sequence
from typing import Any

from diffusers.models.attention_processor import MochiAttnProcessor2_0
from jaxtyping import Float, Int64
from torch import Tensor, nn

from tapvideo.models.base import Call
from tapvideo.models.joint_attention import JointBlocks, call_on, check_processor
from tapvideo.models.mochi_attention import MochiSelfAttention, MochiSequenceProcessor
from tapvideo.parallel.attention import SequenceAttention
from tapvideo.stream import Stream


class MochiAdapter(JointBlocks):
    """Probe and blocks of `MochiTransformer3DModel`."""

    block_lists: tuple[str, ...] = ("transformer_blocks",)
    head: str = "proj_out"
    rotary: tuple[str, ...] = ("rope",)
    arguments = ("hidden_states", "encoder_hidden_states", "temb", "encoder_attention_mask", "image_rotary_emb")

    def modulated_input(self, block: nn.Module, stream: Stream) -> Float[Tensor, "b n d"]:
        """Of the block's own norm, which modulates."""
        return call_on(stream.hidden.device, block.norm1, stream.hidden, stream.rest[0])[0]

    def take_tokens(self, stream: Stream, positions: Int64[Tensor, " n"]) -> Stream:
        """Rotary tables, of every head its own, go by position; the mask is the text's."""
        temb, mask, rotary = stream.rest
        rotary = tuple(table.index_select(0, positions) for table in rotary)
        return Stream(stream.hidden.index_select(1, positions), stream.text, (temb, mask, rotary))

    def latent_size(self, call: Call) -> tuple[int, int, int]:
        """Latents are [b, c, t, h, w]."""
        _, _, t, h, w = call["hidden_states"].shape
        return t, h, w

    def token_grid(self, transformer: nn.Module, latent_size: tuple[int, int, int]) -> tuple[int, int, int]:
        """Frames are tokens one by one."""
        config: Any = transformer.config
        t, h, w = latent_size
        return t, h // config.patch_size, w // config.patch_size

    def empty_output(self, transformer: nn.Module, call: Call) -> Tensor:
        """Velocities: as many channels as the model gives out."""
        latents = call["hidden_states"]
        channels = transformer.config.out_channels or transformer.config.in_channels
        return latents.new_empty(len(latents), channels, *latents.shape[2:])

    def attentions(self, blocks: Sequence[nn.Module]) -> list[Any]:
        """`attn1`, of text and video."""
        return [MochiSelfAttention(block.attn1) for block in blocks]

    def processor(self, original: Any, layer: int, attention: SequenceAttention) -> MochiSequenceProcessor:
        """Joint attention whose tokens are spread over ranks, or partly kept from earlier steps.

        Raises:
            ValueError: if the model's processor is not diffusers' own, or full steps are to be xfuser's.
        """
        check_processor(original, (MochiAttnProcessor2_0,), attention)
        return MochiSequenceProcessor(layer, attention)
