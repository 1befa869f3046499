"""FLUX.1 (`FluxTransformer2DModel`)."""

from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from jaxtyping import Float, Int64
from torch import Tensor, nn

from tapvideo.models.base import Call
from tapvideo.models.flux_attention import FluxSequenceProcessor
from tapvideo.models.joint_attention import TokenLatents, call_on, check_processor, refuse_control
from tapvideo.parallel.attention import SequenceAttention
from tapvideo.stream import Stream


class FluxAdapter(TokenLatents):
    """Probe and blocks of `FluxTransformer2DModel`: dual-stream blocks first, then single-stream ones."""

    block_lists: tuple[str, ...] = ("transformer_blocks", "single_transformer_blocks")
    head: str = "proj_out"
    arguments = ("hidden_states", "encoder_hidden_states", "temb", "image_rotary_emb", "joint_attention_kwargs")
    gives_text_first = True

    def modulated_input(self, block: nn.Module, stream: Stream) -> Float[Tensor, "b n d"]:
        """Of the block's own norm, which modulates."""
        return call_on(stream.hidden.device, block.norm1, stream.hidden, emb=stream.rest[0])[0]

    def take_tokens(self, stream: Stream, positions: Int64[Tensor, " n"]) -> Stream:
        """Rotary tables begin with the text's."""
        assert stream.text is not None
        temb, rotary, options = stream.rest
        text = stream.text.shape[1]
        rotary = tuple(torch.cat([table[:text], table[text:].index_select(0, positions)]) for table in rotary)
        return Stream(stream.hidden.index_select(1, positions), stream.text, (temb, rotary, options))

    def latent_size(self, call: Call) -> tuple[int, int, int]:
        """From the position ids; one row where these are of more than one image.

        Raises:
            ValueError: if a ControlNet adds to what the blocks make.
        """
        refuse_control(call)
        ids, tokens = call["img_ids"], call["hidden_states"].shape[1]
        rows, columns = (int(side) + 1 for side in ids.reshape(-1, ids.shape[-1])[:, -2:].amax(0).tolist())
        return (1, rows, columns) if rows * columns == tokens else (1, 1, tokens)

    def processor(self, original: Any, layer: int, attention: SequenceAttention) -> FluxSequenceProcessor:
        """Joint attention whose tokens are spread over ranks, or partly kept from earlier steps.

        Raises:
            ValueError: if the model's processor is not diffusers' own, or full steps are to be xfuser's.
        """
        check_processor(original, (FluxAttnProcessor,), attention)
        return FluxSequenceProcessor(original, layer, attention)
