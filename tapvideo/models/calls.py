"""What the arguments of a transformer's call, and the way its weights are kept, say of a step."""

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from tapvideo.models.base import Call

GROUP_OFFLOAD = "group_offloading"
"""What diffusers calls its hook."""


def largest_timestep(call: Call) -> float | None:
    """Of all rows and tokens of a call; None where it has none."""
    timestep = call.get("timestep")
    return None if timestep is None else float(torch.as_tensor(timestep).max())


def given_tokens(call: Call, num_tokens: int) -> Bool[Tensor, "b n"] | None:
    """Which tokens stand at timestep 0 while others do not, where every token has a timestep of its own."""
    timestep = call.get("timestep")
    if not isinstance(timestep, Tensor) or timestep.ndim != 2 or timestep.shape[1] != num_tokens:
        return None
    given = timestep == 0
    return given if given.any() and not given.all(1).any() else None


def refuse_disk_offload(block: nn.Module) -> None:
    """Refuse weights that are on disk between steps: what stands in memory then is no weight, and the probe reads some.

    Raises:
        ValueError: if group offloading goes to disk.
    """
    registries: list[Any] = [m._diffusers_hook for m in block.modules() if hasattr(m, "_diffusers_hook")]
    hooks = [hook for registry in registries if (hook := registry.get_hook(GROUP_OFFLOAD)) is not None]
    if any(hook.group.offload_to_disk_path is not None for hook in hooks):
        raise ValueError("TAP does not work with group offloading to disk; without offload_to_disk_path it does")
