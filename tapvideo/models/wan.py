"""Wan 2.1 and 2.2 (`WanTransformer3DModel`)."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2TransformerBlock
from diffusers.models.transformers.transformer_wan import WanAttnProcessor, WanTransformerBlock
from jaxtyping import Float, Int64
from torch import Tensor, nn

from tapvideo.chunks import by_pieces
from tapvideo.models.base import Call
from tapvideo.models.wan_attention import WanSequenceProcessor
from tapvideo.parallel.attention import SequenceAttention
from tapvideo.stream import Stream

_HEAD_DIM = 128


class WanAdapter:
    """Probe and blocks of `WanTransformer3DModel`."""

    block_lists: tuple[str, ...] = ("blocks",)
    head: str = "proj_out"
    text_projection: str = "condition_embedder.text_embedder"
    rotary: tuple[str, ...] = ("rope",)
    alike: tuple[str, ...] = ("patch_embedding", "condition_embedder")
    first_attention: str = "blocks.0.attn1"
    processor_class: type = WanAttnProcessor
    """Of the self-attention that a stand-in knows how to do."""

    def stream(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Stream:
        """Tokens; then text, timesteps and rotary tables, which no block changes."""
        hidden, *rest = args
        return Stream(hidden, rest=tuple(rest))

    def run(self, block: nn.Module, stream: Stream) -> Stream:
        """One block."""
        return Stream(block(stream.hidden, *stream.rest), rest=stream.rest)

    def result(self, stream: Stream) -> Float[Tensor, "b n d"]:
        """Tokens alone."""
        return stream.hidden

    def read_result(self, result: Any) -> tuple[Float[Tensor, "b n d"], None]:
        """Tokens alone."""
        return result, None

    def modulated_input(self, block: nn.Module, stream: Stream) -> Float[Tensor, "b n d"]:
        """norm1(x) (1 + scale) + shift of block 0, as in `WanTransformerBlock.forward`."""
        assert isinstance(block, (WanTransformerBlock, SkyReelsV2TransformerBlock))
        hidden, (_, temb, _) = stream.hidden, stream.rest
        if block.scale_shift_table.is_meta:
            raise ValueError("TAP does not work with sequential CPU offload; model or group offload do")
        own = block.scale_shift_table.to(hidden.device)  # offloading by group leaves it on the CPU between full steps
        if temb.ndim == 4:  # one timestep per token (Wan 2.2 TI2V): [b, n, 6, d]
            table = own.unsqueeze(0) + temb.float()
            shift, scale = table[:, :, 0], table[:, :, 1]
        else:  # [b, 6, d]
            table = own + temb.float()
            shift, scale = table[:, :1], table[:, 1:2]
        norm = block.norm1
        return by_pieces(lambda x, scale, shift: norm(x.float()).mul_(scale).add_(shift), hidden, 1 + scale, shift)

    def take_tokens(self, stream: Stream, positions: Int64[Tensor, " n"]) -> Stream:
        """Rotary tables go by position, and so do timesteps where every token has its own; text is for all."""
        text, temb, rotary = stream.rest
        if temb.ndim == 4:
            temb = temb.index_select(1, positions)
        rotary = tuple(table.index_select(1, positions) for table in rotary)
        return Stream(stream.hidden.index_select(1, positions), rest=(text, temb, rotary))

    def latent_size(self, call: Call) -> tuple[int, int, int]:
        """Latents are [b, c, t, h, w]."""
        _, _, t, h, w = call["hidden_states"].shape
        return t, h, w

    def token_grid(self, transformer: nn.Module, latent_size: tuple[int, int, int]) -> tuple[int, int, int]:
        """Latent frames, rows and columns over the patch size."""
        t, h, w = (size // patch for size, patch in zip(latent_size, transformer.config.patch_size, strict=True))
        return t, h, w

    def empty_output(self, transformer: nn.Module, call: Call) -> Tensor:
        """Velocities: as many channels as the model gives out."""
        latents = call["hidden_states"]
        return latents.new_empty(len(latents), transformer.config.out_channels, *latents.shape[2:])

    def attentions(self, blocks: Sequence[nn.Module]) -> list[Any]:
        """`attn1`; `attn2` attends to text, which every rank has."""
        return [block.attn1 for block in blocks]

    def processor(self, original: Any, layer: int, attention: SequenceAttention) -> WanSequenceProcessor:
        """Self-attention whose tokens are spread over ranks, or partly kept from earlier steps.

        Raises:
            ValueError: if the model's processor is not diffusers' own.
        """
        if type(original) is not self.processor_class:
            raise ValueError(
                f"self-attention is a {type(original).__name__} here; sharing tokens and recomputing them works with "
                f"diffusers' {self.processor_class.__name__} only"
            )
        return WanSequenceProcessor(original, layer, attention)


def random_transformer(
    *, dim: int, ffn_dim: int, num_layers: int, device: torch.device, dtype: torch.dtype
) -> WanTransformer3DModel:
    """A transformer with random weights and heads of 128, for timing at the sizes of a real one."""
    heads = dim // _HEAD_DIM
    transformer = WanTransformer3DModel(
        num_attention_heads=heads, attention_head_dim=_HEAD_DIM, ffn_dim=ffn_dim, num_layers=num_layers
    )
    return transformer.to(device, dtype).eval()
