"""Architectures TAP knows, by diffusers class name. A new one is one file, one line here, one yaml and one test."""

from typing import Any

from torch import nn

from tapvideo.models.base import ModelAdapter
from tapvideo.models.cogvideox import CogVideoXAdapter
from tapvideo.models.cogview4 import CogView4Adapter
from tapvideo.models.flux import FluxAdapter
from tapvideo.models.hunyuan import HunyuanAdapter
from tapvideo.models.hunyuan15 import Hunyuan15Adapter
from tapvideo.models.ltx import LTXAdapter
from tapvideo.models.ltx2 import LTX2Adapter
from tapvideo.models.mochi import MochiAdapter
from tapvideo.models.qwen import QwenAdapter
from tapvideo.models.skyreels import SkyReelsAdapter
from tapvideo.models.wan import WanAdapter

ADAPTERS: dict[str, type[ModelAdapter]] = {
    "CogVideoXTransformer3DModel": CogVideoXAdapter,
    "CogView4Transformer2DModel": CogView4Adapter,
    "FluxTransformer2DModel": FluxAdapter,
    "HunyuanVideoTransformer3DModel": HunyuanAdapter,
    "HunyuanVideo15Transformer3DModel": Hunyuan15Adapter,
    "LTXVideoTransformer3DModel": LTXAdapter,
    "LTX2VideoTransformer3DModel": LTX2Adapter,
    "MochiTransformer3DModel": MochiAdapter,
    "QwenImageTransformer2DModel": QwenAdapter,
    "SkyReelsV2Transformer3DModel": SkyReelsAdapter,
    "WanTransformer3DModel": WanAdapter,
}
REFUSED = {
    "WanVACETransformer3DModel": "VACE adds hints between the blocks, which a forecast of the whole stack would drop"
}


def adapter_for(transformer: nn.Module) -> ModelAdapter:
    """The adapter of a transformer.

    Raises:
        ValueError: if the class is not supported, or is refused for a reason that the message gives.
    """
    if hasattr(transformer, "_orig_mod") or transformer._compiled_call_impl is not None:
        raise ValueError(
            "this transformer is compiled whole; call transformer.compile_repeated_blocks() instead, then enable_tap"
        )
    name = type(transformer).__name__
    if name in REFUSED:
        raise ValueError(f"{name} is not supported: {REFUSED[name]}")
    if name not in ADAPTERS:
        raise ValueError(f"{name} is not supported; supported: {', '.join(ADAPTERS)}")
    return ADAPTERS[name]()


def compile_blocks(transformer: Any, **options: Any) -> None:
    """Compile the blocks of a transformer; also where diffusers' `compile_repeated_blocks` does not know its class.

    Args:
        transformer: of a class that is supported.
        options: of `torch.compile`.

    Raises:
        ValueError: if the class is not supported.
    """
    if transformer._repeated_blocks:
        transformer.compile_repeated_blocks(**options)
        return
    for name in adapter_for(transformer).block_lists:
        for block in getattr(transformer, name):
            block.compile(**options)
