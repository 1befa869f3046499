"""What architectures share whose blocks attend to text and video jointly."""

from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tapvideo.checks import ConfigError
from tapvideo.models.base import Call
from tapvideo.models.calls import GROUP_OFFLOAD
from tapvideo.parallel.attention import SequenceAttention
from tapvideo.stream import Stream


class JointBlocks:
    """How blocks are called that take tokens and text and give out both."""

    arguments: tuple[str, ...] = ()
    """Of a block, in order: tokens and text first."""
    gives_text_first: bool = False

    def stream(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Stream:
        """From arguments by order or by name."""
        given = dict(zip(self.arguments, args, strict=False)) | kwargs
        hidden, text, *rest = (given[name] for name in self.arguments)
        return Stream(hidden, text, tuple(rest))

    def run(self, block: nn.Module, stream: Stream) -> Stream:
        """One block."""
        return Stream(*self.read_result(block(stream.hidden, stream.text, *stream.rest)), rest=stream.rest)

    def result(self, stream: Stream) -> tuple[Tensor | None, Tensor | None]:
        """Tokens and text, in the model's order."""
        return (stream.text, stream.hidden) if self.gives_text_first else (stream.hidden, stream.text)

    def read_result(self, result: Any) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b m e"]]:
        """Tokens and text, from the model's order."""
        first, second = result
        return (second, first) if self.gives_text_first else (first, second)


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


class TokenLatents(JointBlocks):
    """Image models whose pipelines hand over latents as tokens."""

    def token_grid(self, transformer: nn.Module, latent_size: tuple[int, int, int]) -> tuple[int, int, int]:
        """A latent is a token."""
        return latent_size

    def empty_output(self, transformer: nn.Module, call: Call) -> Tensor:
        """Velocities of the tokens."""
        latents = call["hidden_states"]
        config: Any = transformer.config
        channels = config.patch_size**2 * (config.out_channels or config.in_channels)
        return latents.new_empty(*latents.shape[:2], channels)

    def attentions(self, blocks: Sequence[nn.Module]) -> list[Any]:
        """`attn`, of text and tokens, in blocks of every kind."""
        return [block.attn for block in blocks]


def refuse_control(call: Call) -> None:
    """Refuse calls in which something is added between the blocks.

    Raises:
        ValueError: if a ControlNet's residuals come with the call.
    """
    given = [name for name, value in call.items() if name.startswith("controlnet") and name.endswith("samples")]
    if any(call[name] is not None for name in given):
        raise ValueError("TAP does not work with a ControlNet, which adds to what the blocks make; disable() it first")


def call_on(device: torch.device, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What a small part of a block computes outside of its block, without waking whoever offloads its weights.

    Raises:
        ValueError: under sequential offloading, which leaves no weights to read.
    """
    weights = list(module.parameters())
    if any(weight.is_meta for weight in weights):
        raise ValueError("TAP does not work with sequential CPU offload; model or group offload do")
    registries: list[Any] = [m._diffusers_hook for m in module.modules() if hasattr(m, "_diffusers_hook")]
    hooks = [registry.get_hook(GROUP_OFFLOAD) for registry in registries]
    if all(weight.device == device for weight in weights) and not any(hooks):
        return module(*args, **kwargs)
    return _unhooked(module, device)(*args, **kwargs)


def _unhooked(module: nn.Module, device: torch.device) -> nn.Module:
    """A twin that computes as the module does, with the same weights, but as if no hook had replaced its forward.

    Projections get timesteps only: these go to where the weights are, which are far more. Other weights come here.
    """
    twin = copy(module)
    if isinstance(module, nn.Linear):
        where = module.weight.device
        twin.forward = lambda rows: type(module).forward(module, rows.to(where)).to(device)
        return twin
    twin.__dict__.pop("forward", None)
    own = {"_parameters": module._parameters, "_buffers": module._buffers}
    for name, tensors in own.items():
        setattr(twin, name, {key: None if value is None else value.to(device) for key, value in tensors.items()})
    twin._modules = {key: None if m is None else _unhooked(m, device) for key, m in module._modules.items()}
    return twin
