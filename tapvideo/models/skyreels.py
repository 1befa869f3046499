"""SkyReels-V2 (`SkyReelsV2Transformer3DModel`): Wan's blocks, with a mask for diffusion forcing."""

from typing import Any

from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2AttnProcessor
from jaxtyping import Float, Int64
from torch import Tensor, nn

from tapvideo.models.wan import WanAdapter
from tapvideo.stream import Stream


class SkyReelsAdapter(WanAdapter):
    """Probe and blocks of `SkyReelsV2Transformer3DModel`."""

    processor_class: type = SkyReelsV2AttnProcessor

    def stream(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Stream:
        """As Wan's, and a mask.

        Raises:
            ValueError: under diffusion forcing, whose frames are at steps of their own.
        """
        stream = super().stream(args, kwargs)
        _, temb, _, mask = stream.rest
        if temb.ndim == 4 or mask is not None:
            raise ValueError(
                "TAP does not work with diffusion forcing, whose frames are at steps of their own; "
                "SkyReelsV2Pipeline and SkyReelsV2ImageToVideoPipeline do"
            )
        return stream

    def modulated_input(self, block: nn.Module, stream: Stream) -> Float[Tensor, "b n d"]:
        """As Wan's."""
        return super().modulated_input(block, Stream(stream.hidden, rest=stream.rest[:3]))

    def take_tokens(self, stream: Stream, positions: Int64[Tensor, " n"]) -> Stream:
        """As Wan's; there is no mask."""
        taken = super().take_tokens(Stream(stream.hidden, rest=stream.rest[:3]), positions)
        return Stream(taken.hidden, rest=(*taken.rest, None))
