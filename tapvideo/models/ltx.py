"""LTX-Video (`LTXVideoTransformer3DModel`)."""

from collections.abc import Sequence
from typing import Any

from diffusers.models.transformers.transformer_ltx import LTXVideoAttnProcessor, LTXVideoTransformerBlock
from jaxtyping import Float, Int64
from torch import Tensor, nn

from tapvideo.chunks import by_pieces
from tapvideo.models.base import Call
from tapvideo.models.ltx_attention import LTXSequenceProcessor
from tapvideo.models.sequence_processor import SequenceProcessor
from tapvideo.parallel.attention import SequenceAttention
from tapvideo.stream import Stream

_ARGUMENTS = ("hidden_states", "encoder_hidden_states", "temb", "image_rotary_emb", "encoder_attention_mask")


def modulated(norm: nn.Module, table: Tensor, temb: Tensor, hidden: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
    """norm(x) (1 + scale) + shift, where shift and scale are the first two rows of a block's table and a timestep's.

    Raises:
        ValueError: under sequential offloading, which leaves no weights to read.
    """
    if table.is_meta:
        raise ValueError("TAP does not work with sequential CPU offload; model or group offload do")
    own = table.to(temb.device)  # offloading by group leaves it on the CPU between full steps
    # [b, 1, d], or [b, n, d] where every token has its own timestep (image to video)
    shift, scale = (own[row] + temb.unflatten(-1, (len(own), -1))[:, :, row] for row in (0, 1))
    return by_pieces(lambda x, scale, shift: norm(x) * scale + shift, hidden, 1 + scale, shift)


class LTXAdapter:
    """Probe and blocks of `LTXVideoTransformer3DModel`."""

    block_lists: tuple[str, ...] = ("transformer_blocks",)
    head: str = "proj_out"
    rotary: tuple[str, ...] = ("rope",)
    processor_classes: tuple[type, ...] = (LTXVideoAttnProcessor,)
    """Those that a stand-in knows how to do."""
    stand_in: type[SequenceProcessor] = LTXSequenceProcessor

    def stream(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Stream:
        """Tokens; then text, timesteps, rotary tables and the text's mask, which no block changes."""
        named = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
        hidden, *rest = (named.get(name) for name in _ARGUMENTS)
        assert isinstance(hidden, Tensor)
        return Stream(hidden, rest=tuple(rest))

    def run(self, block: nn.Module, stream: Stream) -> Stream:
        """One block."""
        named = dict(zip(_ARGUMENTS, (stream.hidden, *stream.rest), strict=True))
        return Stream(block(**named), rest=stream.rest)

    def result(self, stream: Stream) -> Any:
        """Tokens alone."""
        return stream.hidden

    def read_result(self, result: Any) -> tuple[Float[Tensor, "b n d"], None]:
        """Tokens alone."""
        return result, None

    def modulated_input(self, block: nn.Module, stream: Stream) -> Float[Tensor, "b n d"]:
        """norm1(x) (1 + scale) + shift of block 0, as in `LTXVideoTransformerBlock.forward`."""
        assert isinstance(block, LTXVideoTransformerBlock)
        return modulated(block.norm1, block.scale_shift_table, stream.rest[1], stream.hidden)

    def take_tokens(self, stream: Stream, positions: Int64[Tensor, " n"]) -> Stream:
        """Rotary tables go by position, and so do timesteps where every token has its own; text is for all."""
        text, temb, rotary, mask = stream.rest
        if temb.shape[1] == stream.hidden.shape[1]:
            temb = temb.index_select(1, positions)
        rotary = tuple(table.index_select(1, positions) for table in rotary)
        return Stream(stream.hidden.index_select(1, positions), rest=(text, temb, rotary, mask))

    def latent_size(self, call: Call) -> tuple[int, int, int]:
        """As the call says: latents come packed, [b, n, c]; a line where tokens lie at coordinates of their own."""
        tokens = call["hidden_states"].shape[1]
        t, h, w = (call.get(name) or 0 for name in ("num_frames", "height", "width"))
        return (t, h, w) if t * h * w == tokens else (1, 1, tokens)

    def token_grid(self, transformer: nn.Module, latent_size: tuple[int, int, int]) -> tuple[int, int, int]:
        """Latent frames, rows and columns over the patch size, which is 1 in all released models."""
        config: Any = transformer.config
        t, h, w = latent_size
        return t // config.patch_size_t, h // config.patch_size, w // config.patch_size

    def empty_output(self, transformer: nn.Module, call: Call) -> Tensor:
        """Velocities: as many channels as the model gives out."""
        latents, config = call["hidden_states"], transformer.config
        return latents.new_empty(*latents.shape[:2], config.out_channels or config.in_channels)

    def attentions(self, blocks: Sequence[nn.Module]) -> list[Any]:
        """`attn1`; `attn2` attends to text, which every rank has."""
        return [block.attn1 for block in blocks]

    def processor(self, original: Any, layer: int, attention: SequenceAttention) -> SequenceProcessor:
        """Self-attention whose tokens are spread over ranks, or partly kept from earlier steps.

        Raises:
            ValueError: if the model's processor is not diffusers' own.
        """
        if type(original) not in self.processor_classes:
            names = " or ".join(kind.__name__ for kind in self.processor_classes)
            raise ValueError(
                f"self-attention is a {type(original).__name__} here; sharing tokens and recomputing them works with "
                f"diffusers' {names} only"
            )
        return self.stand_in(original, layer, attention)
