"""What architectures share whose blocks attend to text and video jointly."""

from typing import Any

import torch
from torch import nn

from tapvideo.checks import ConfigError
from tapvideo.models.base import Call
from tapvideo.parallel.attention import SequenceAttention


def check_processor(original: Any, known: tuple[type, ...], attention: SequenceAttention) -> None:
    """Refuse what no stand-in can do alike.

    Args:
        original: the model's own processor.
        known: types of diffusers' own.
        attention: what the stand-in leaves attention to.

    Raises:
        ConfigError: if full steps are xfuser's, which would attend to every rank's copy of the text.
        ValueError: if the model's processor is not diffusers' own.
    """
    if attention.full == "usp" and attention.comm.size > 1:
        raise ConfigError(
            "parallel.attention='usp' does not know of text that all ranks have, and this model attends to text and "
            "video jointly; allowed with it: auto, ulysses, allgather_kv"
        )
    if type(original) not in known:
        names = " or ".join(kind.__name__ for kind in known)
        raise ValueError(
            f"attention is a {type(original).__name__} here; sharing tokens and recomputing them works with diffusers' "
            f"{names} only"
        )


def refuse_control(call: Call) -> None:
    """Refuse calls in which something is added between the blocks.

    Raises:
        ValueError: if a ControlNet's residuals come with the call.
    """
    given = [name for name, value in call.items() if name.startswith("controlnet") and name.endswith("samples")]
    if any(call[name] is not None for name in given):
        raise ValueError("TAP does not work with a ControlNet, which adds to what the blocks make; disable() it first")


def call_on(device: torch.device, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What a part of a block computes outside of its block, whose weights offloading by group may have put elsewhere.

    Raises:
        ValueError: under sequential offloading, which leaves no weights to read.
    """
    weights = dict(module.named_parameters())
    if any(weight.is_meta for weight in weights.values()):
        raise ValueError("TAP does not work with sequential CPU offload; model or group offload do")
    if all(weight.device == device for weight in weights.values()):
        return module(*args, **kwargs)
    moved = {name: weight.to(device) for name, weight in weights.items()}
    return torch.func.functional_call(module, moved, args, kwargs)
