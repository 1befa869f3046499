"""HunyuanVideo 1.5, from text and from images (`HunyuanVideo15Transformer3DModel`)."""

from typing import Any

from diffusers.models.transformers.transformer_hunyuan_video15 import HunyuanVideo15AttnProcessor2_0
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from tapvideo.models.hunyuan import HunyuanAdapter
from tapvideo.models.hunyuan_attention import HunyuanSequenceProcessor
from tapvideo.models.joint_attention import call_on, check_processor
from tapvideo.parallel.attention import SequenceAttention
from tapvideo.stream import Stream


class Hunyuan15SequenceProcessor(HunyuanSequenceProcessor):
    """As HunyuanVideo's; the mask is the text's alone."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "b n d"],
        encoder_hidden_states: Float[Tensor, "b m d"],
        attention_mask: Shaped[Tensor, "b m"] | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b m d"]]:
        """Padding may attend to what it likes: nothing attends to it."""
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None]
        return super().__call__(attn, hidden_states, encoder_hidden_states, mask, image_rotary_emb)


class Hunyuan15Adapter(HunyuanAdapter):
    """Probe and blocks of `HunyuanVideo15Transformer3DModel`, all of them dual-stream."""

    block_lists: tuple[str, ...] = ("transformer_blocks",)
    alike: tuple[str, ...] = ("x_embedder", "time_embed")
    arguments = ("hidden_states", "encoder_hidden_states", "temb", "attention_mask", "freqs_cis")

    def modulated_input(self, block: nn.Module, stream: Stream) -> Float[Tensor, "b n d"]:
        """Of the block's own norm, which modulates."""
        return call_on(stream.hidden.device, block.norm1, stream.hidden, emb=stream.rest[0])[0]

    def take_tokens(self, stream: Stream, positions: Int64[Tensor, " n"]) -> Stream:
        """Rotary tables go by position; the mask is the text's."""
        temb, mask, rotary = stream.rest
        rotary = tuple(table.index_select(0, positions) for table in rotary)
        return Stream(stream.hidden.index_select(1, positions), stream.text, (temb, mask, rotary))

    def processor(self, original: Any, layer: int, attention: SequenceAttention) -> Hunyuan15SequenceProcessor:
        """Joint attention whose tokens are spread over ranks, or partly kept from earlier steps.

        Raises:
            ValueError: if the model's processor is not diffusers' own, or full steps are to be xfuser's.
        """
        check_processor(original, (HunyuanVideo15AttnProcessor2_0,), attention)
        return Hunyuan15SequenceProcessor(original, layer, attention)
