"""CogVideoX 2B, 5B and 1.5, from text and from images (`CogVideoXTransformer3DModel`)."""

from collections.abc import Sequence
from typing import Any

from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
from jaxtyping import Float, Int64
from torch import Tensor, nn

from tapvideo.models.base import Call
from tapvideo.models.cogvideox_attention import OWN_PROCESSORS, CogVideoXSequenceProcessor
from tapvideo.models.joint_attention import JointBlocks, call_on, check_processor
from tapvideo.parallel.attention import SequenceAttention
from tapvideo.stream import Stream


class CogVideoXAdapter(JointBlocks):
    """Probe and blocks of `CogVideoXTransformer3DModel`."""

    block_lists: tuple[str, ...] = ("transformer_blocks",)
    head: str = "proj_out"
    arguments = ("hidden_states", "encoder_hidden_states", "temb", "image_rotary_emb", "attention_kwargs")

    def modulated_input(self, block: nn.Module, stream: Stream) -> Float[Tensor, "b n d"]:
        """Of the block's own norm, which modulates."""
        assert isinstance(block, CogVideoXBlock)
        hidden, *_ = call_on(stream.hidden.device, block.norm1, stream.hidden, stream.text, stream.rest[0])
        return hidden

    def take_tokens(self, stream: Stream, positions: Int64[Tensor, " n"]) -> Stream:
        """Rotary tables go by position; 2B has none, as positions are added before the blocks."""
        temb, rotary, options = stream.rest
        if rotary is not None:
            rotary = tuple(table.index_select(0, positions.to(table.device)) for table in rotary)
        return Stream(stream.hidden.index_select(1, positions), stream.text, (temb, rotary, options))

    def latent_size(self, call: Call) -> tuple[int, int, int]:
        """Latents are [b, t, c, h, w]."""
        _, t, _, h, w = call["hidden_states"].shape
        return t, h, w

    def token_grid(self, transformer: nn.Module, latent_size: tuple[int, int, int]) -> tuple[int, int, int]:
        """Frames are tokens one by one before 1.5, which takes `patch_size_t` of them together."""
        config: Any = transformer.config
        t, h, w = latent_size
        return -(-t // (config.patch_size_t or 1)), h // config.patch_size, w // config.patch_size

    def empty_output(self, transformer: nn.Module, call: Call) -> Tensor:
        """Velocities: image-to-video models take more channels than they give out."""
        latents = call["hidden_states"]
        batch, t, _, h, w = latents.shape
        return latents.new_empty(batch, t, transformer.config.out_channels, h, w)

    def attentions(self, blocks: Sequence[nn.Module]) -> list[Any]:
        """`attn1`, of text and video."""
        return [block.attn1 for block in blocks]

    def processor(self, original: Any, layer: int, attention: SequenceAttention) -> CogVideoXSequenceProcessor:
        """Joint attention whose tokens are spread over ranks, or partly kept from earlier steps.

        Raises:
            ValueError: if the model's processor is not diffusers' own, or full steps are to be xfuser's.
        """
        check_processor(original, OWN_PROCESSORS, attention)
        return CogVideoXSequenceProcessor(original, layer, attention)
