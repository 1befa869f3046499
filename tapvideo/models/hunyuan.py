"""HunyuanVideo, from text and from images (`HunyuanVideoTransformer3DModel`)."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.transformers.transformer_hunyuan_video import (
    HunyuanVideoAttnProcessor2_0,
    HunyuanVideoTokenReplaceTransformerBlock,
)
from jaxtyping import Float, Int64
from torch import Tensor, nn

from tapvideo.models.base import Call
from tapvideo.models.hunyuan_attention import HunyuanSequenceProcessor
from tapvideo.models.joint_attention import JointBlocks, call_on, check_processor
from tapvideo.parallel.attention import SequenceAttention
from tapvideo.stream import Stream


class HunyuanAdapter(JointBlocks):
    """Probe and blocks of `HunyuanVideoTransformer3DModel`: dual-stream blocks first, then single-stream ones."""

    block_lists: tuple[str, ...] = ("transformer_blocks", "single_transformer_blocks")
    head: str = "proj_out"
    rotary: tuple[str, ...] = ("rope",)
    arguments = (
        "hidden_states", "encoder_hidden_states", "temb", "attention_mask", "freqs_cis", "token_replace_emb",
        "num_tokens",
    )  # fmt: skip
    """The last two are of models in which an image takes the place of the first frame."""

    def modulated_input(self, block: nn.Module, stream: Stream) -> Float[Tensor, "b n d"]:
        """Of the block's own norm, which modulates; a first frame that is an image has its own timestep."""
        hidden, (temb, _, _, first_temb, first_tokens) = stream.hidden, stream.rest
        if isinstance(block, HunyuanVideoTokenReplaceTransformerBlock):
            return call_on(hidden.device, block.norm1, hidden, temb, first_temb, first_tokens)[0]
        return call_on(hidden.device, block.norm1, hidden, emb=temb)[0]

    def take_tokens(self, stream: Stream, positions: Int64[Tensor, " n"]) -> Stream:
        """Rotary tables and the mask go by position, and so does what belongs to the first frame."""
        temb, mask, rotary, first_temb, first_tokens = stream.rest
        tokens = stream.hidden.shape[1]
        if mask is not None:
            mask = torch.cat([mask[..., :tokens].index_select(-1, positions), mask[..., tokens:]], -1)
        rotary = tuple(table.index_select(0, positions) for table in rotary)
        if first_temb is not None:  # positions ascend, so the first frame's come first
            first_tokens = int((positions < first_tokens).sum())
        rest = (temb, mask, rotary, first_temb, first_tokens)
        return Stream(stream.hidden.index_select(1, positions), stream.text, rest)

    def latent_size(self, call: Call) -> tuple[int, int, int]:
        """Latents are [b, c, t, h, w]."""
        _, _, t, h, w = call["hidden_states"].shape
        return t, h, w

    def token_grid(self, transformer: nn.Module, latent_size: tuple[int, int, int]) -> tuple[int, int, int]:
        """Latent frames, rows and columns over the patch sizes."""
        config: Any = transformer.config
        t, h, w = latent_size
        return t // config.patch_size_t, h // config.patch_size, w // config.patch_size

    def empty_output(self, transformer: nn.Module, call: Call) -> Tensor:
        """Velocities: models that get an image beside the latents take more channels than they give out."""
        latents = call["hidden_states"]
        return latents.new_empty(len(latents), transformer.config.out_channels, *latents.shape[2:])

    def attentions(self, blocks: Sequence[nn.Module]) -> list[Any]:
        """`attn`, of text and video, in blocks of both kinds."""
        return [block.attn for block in blocks]

    def processor(self, original: Any, layer: int, attention: SequenceAttention) -> HunyuanSequenceProcessor:
        """Joint attention whose tokens are spread over ranks, or partly kept from earlier steps.

        Raises:
            ValueError: if the model's processor is not diffusers' own, or full steps are to be xfuser's.
        """
        check_processor(original, (HunyuanVideoAttnProcessor2_0,), attention)
        return HunyuanSequenceProcessor(original, layer, attention)
