"""Qwen-Image (`QwenImageTransformer2DModel`)."""

import math
from typing import Any

from diffusers.models.transformers.transformer_qwenimage import (
    QwenDoubleStreamAttnProcessor2_0,
    QwenImageTransformerBlock,
)
from jaxtyping import Float, Int64
from torch import Tensor, nn

from tapvideo.models.base import Call
from tapvideo.models.joint_attention import TokenLatents, call_on, check_processor, refuse_control
from tapvideo.models.qwen_attention import QwenSequenceProcessor
from tapvideo.parallel.attention import SequenceAttention
from tapvideo.stream import Stream


class QwenAdapter(TokenLatents):
    """Probe and blocks of `QwenImageTransformer2DModel`."""

    block_lists: tuple[str, ...] = ("transformer_blocks",)
    head: str = "proj_out"
    arguments = (
        "hidden_states", "encoder_hidden_states", "encoder_hidden_states_mask", "temb", "image_rotary_emb",
        "joint_attention_kwargs", "modulate_index",
    )  # fmt: skip
    gives_text_first = True

    def modulated_input(self, block: nn.Module, stream: Stream) -> Float[Tensor, "b n d"]:
        """norm1(x) (1 + scale) + shift of the image's stream, as in `QwenImageTransformerBlock.forward`."""
        assert isinstance(block, QwenImageTransformerBlock)
        _, temb, _, _, index = stream.rest
        device = stream.hidden.device
        parameters = call_on(device, block.img_mod, temb).chunk(2, dim=-1)[0]
        return block._modulate(call_on(device, block.img_norm1, stream.hidden), parameters, index)[0]

    def take_tokens(self, stream: Stream, positions: Int64[Tensor, " n"]) -> Stream:
        """The image's rotary table goes by position, and so does whose timestep is 0."""
        mask, temb, (image, text), options, index = stream.rest
        index = None if index is None else index.index_select(1, positions)
        rest = (mask, temb, (image.index_select(0, positions), text), options, index)
        return Stream(stream.hidden.index_select(1, positions), stream.text, rest)

    def latent_size(self, call: Call) -> tuple[int, int, int]:
        """Of the image that is made; one row where it comes with others to edit.

        Raises:
            ValueError: if a ControlNet adds to what the blocks make.
        """
        refuse_control(call)
        shapes, tokens = call["img_shapes"][0], call["hidden_states"].shape[1]
        shape = tuple(shapes[0]) if isinstance(shapes, list) else tuple(shapes)
        return shape if math.prod(shape) == tokens else (1, 1, tokens)

    def processor(self, original: Any, layer: int, attention: SequenceAttention) -> QwenSequenceProcessor:
        """Joint attention whose tokens are spread over ranks, or partly kept from earlier steps.

        Raises:
            ValueError: if the model's processor is not diffusers' own, or full steps are to be xfuser's.
        """
        check_processor(original, (QwenDoubleStreamAttnProcessor2_0,), attention)
        return QwenSequenceProcessor(original, layer, attention)
