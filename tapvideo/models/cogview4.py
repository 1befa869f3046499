"""CogView4 (`CogView4Transformer2DModel`)."""

from collections.abc import Sequence
from typing import Any

from diffusers.models.transformers.transformer_cogview4 import CogView4AttnProcessor
from jaxtyping import Float, Int64
from torch import Tensor, nn

from tapvideo.models.base import Call
from tapvideo.models.cogview4_attention import CogView4SequenceProcessor
from tapvideo.models.joint_attention import JointBlocks, call_on, check_processor
from tapvideo.parallel.attention import SequenceAttention
from tapvideo.stream import Stream


class CogView4Adapter(JointBlocks):
    """Probe and blocks of `CogView4Transformer2DModel`."""

    block_lists: tuple[str, ...] = ("transformer_blocks",)
    head: str = "proj_out"
    rotary: tuple[str, ...] = ("rope",)
    alike: tuple[str, ...] = ("time_condition_embed",)
    arguments = (
        "hidden_states", "encoder_hidden_states", "temb", "image_rotary_emb", "attention_mask", "attention_kwargs"
    )  # fmt: skip

    def modulated_input(self, block: nn.Module, stream: Stream) -> Float[Tensor, "b n d"]:
        """Of the block's own norm, which modulates."""
        return call_on(stream.hidden.device, block.norm1, stream.hidden, stream.text, stream.rest[0])[0]

    def take_tokens(self, stream: Stream, positions: Int64[Tensor, " n"]) -> Stream:
        """Rotary tables go by position."""
        temb, rotary, *rest = stream.rest
        rotary = tuple(table.index_select(0, positions.to(table.device)) for table in rotary)
        return Stream(stream.hidden.index_select(1, positions), stream.text, (temb, rotary, *rest))

    def latent_size(self, call: Call) -> tuple[int, int, int]:
        """Latents are [b, c, h, w]."""
        _, _, h, w = call["hidden_states"].shape
        return 1, h, w

    def token_grid(self, transformer: nn.Module, latent_size: tuple[int, int, int]) -> tuple[int, int, int]:
        """Rows and columns over the patch size."""
        config: Any = transformer.config
        _, h, w = latent_size
        return 1, h // config.patch_size, w // config.patch_size

    def empty_output(self, transformer: nn.Module, call: Call) -> Tensor:
        """Velocities."""
        latents = call["hidden_states"]
        return latents.new_empty(len(latents), transformer.config.out_channels, *latents.shape[2:])

    def attentions(self, blocks: Sequence[nn.Module]) -> list[Any]:
        """`attn1`, of text and tokens."""
        return [block.attn1 for block in blocks]

    def processor(self, original: Any, layer: int, attention: SequenceAttention) -> CogView4SequenceProcessor:
        """Joint attention whose tokens are spread over ranks, or partly kept from earlier steps.

        Raises:
            ValueError: if the model's processor is not diffusers' own, or full steps are to be xfuser's.
        """
        check_processor(original, (CogView4AttnProcessor,), attention)
        return CogView4SequenceProcessor(layer, attention)
