"""FLUX.1 (`FluxTransformer2DModel`)."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from jaxtyping import Float, Int64
from torch import Tensor, nn

from tapvideo.models.base import Call
from tapvideo.models.flux_attention import FluxSequenceProcessor
from tapvideo.models.joint_attention import call_on, check_processor, refuse_control
from tapvideo.parallel.attention import SequenceAttention
from tapvideo.stream import Stream

_BLOCK_ARGUMENTS = ("hidden_states", "encoder_hidden_states", "temb", "image_rotary_emb", "joint_attention_kwargs")


class FluxAdapter:
    """Probe and blocks of `FluxTransformer2DModel`: dual-stream blocks first, then single-stream ones."""

    block_lists: tuple[str, ...] = ("transformer_blocks", "single_transformer_blocks")
    head: str = "proj_out"

    def stream(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Stream:
        """Tokens and text; then timesteps, rotary tables of text and tokens, and options of adapters."""
        given = dict(zip(_BLOCK_ARGUMENTS, args, strict=False)) | kwargs
        hidden, text, *rest = (given[name] for name in _BLOCK_ARGUMENTS)
        return Stream(hidden, text, tuple(rest))

    def run(self, block: nn.Module, stream: Stream) -> Stream:
        """One block of either kind."""
        hidden, text = self.read_result(block(stream.hidden, stream.text, *stream.rest))
        return Stream(hidden, text, stream.rest)

    def result(self, stream: Stream) -> tuple[Float[Tensor, "b m d"] | None, Float[Tensor, "b n d"]]:
        """Text first."""
        return stream.text, stream.hidden

    def read_result(self, result: Any) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b m d"]]:
        """Text first."""
        text, hidden = result
        return hidden, text

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

    def token_grid(self, transformer: nn.Module, latent_size: tuple[int, int, int]) -> tuple[int, int, int]:
        """Latents come as tokens."""
        return latent_size

    def empty_output(self, transformer: nn.Module, call: Call) -> Tensor:
        """Velocities of the tokens."""
        latents = call["hidden_states"]
        patch = transformer.config.patch_size
        return latents.new_empty(*latents.shape[:2], patch * patch * transformer.out_channels)

    def attentions(self, blocks: Sequence[nn.Module]) -> list[Any]:
        """`attn`, of text and tokens, in blocks of both kinds."""
        return [block.attn for block in blocks]

    def processor(self, original: Any, layer: int, attention: SequenceAttention) -> FluxSequenceProcessor:
        """Joint attention whose tokens are spread over ranks, or partly kept from earlier steps.

        Raises:
            ValueError: if the model's processor is not diffusers' own, or full steps are to be xfuser's.
        """
        check_processor(original, (FluxAttnProcessor,), attention)
        return FluxSequenceProcessor(original, layer, attention)
