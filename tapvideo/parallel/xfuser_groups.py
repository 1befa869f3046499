"""Process groups that xfuser makes, in the rank order of torch's DeviceMesh; for `parallel.groups=xfuser` alone.

xfuser (xDiT) cannot be imported without a GPU and keeps one set of groups per process in its own module.
"""

import importlib
from collections.abc import Mapping
from types import ModuleType

import torch
import torch.distributed as dist

from tapvideo.checks import ConfigError

AXES = ("dp", "cfg", "sp")


def xfuser_groups(sizes: tuple[int, int, int], *, ring: int = 1) -> dict[str, dist.ProcessGroup]:
    """This rank's groups on the axes dp, cfg and sp of an initialised `torch.distributed`.

    Args:
        sizes: ranks on dp, cfg and sp; their product is the number of ranks.
        ring: of the sp ranks, how many pass keys and values round a ring in xfuser's own attention.

    Raises:
        ConfigError: if xfuser is not at hand, or does not lay out ranks so.
    """
    _, _, sp = sizes
    if sp % ring:
        allowed = ", ".join(str(n) for n in range(1, sp + 1) if sp % n == 0)
        raise ConfigError(f"parallel.ring={ring} does not divide parallel.sp={sp}; allowed: {allowed}")
    state = import_xfuser("core.distributed.parallel_state")
    if not state.model_parallel_is_initialized():
        _initialise(state, sizes, ring)
    groups = {axis: getattr(state, f"get_{axis}_group")().device_group for axis in AXES}
    _check_members(groups, sizes)
    return groups


def import_xfuser(module: str) -> ModuleType:
    """A module of xfuser.

    Raises:
        ConfigError: if it is not installed, or does not import on this machine.
    """
    try:
        importlib.import_module("xfuser")
        return importlib.import_module(f"xfuser.{module}")
    except ModuleNotFoundError as error:
        is_missing = error.name == "xfuser"
        reason = "it is not installed; pip install 'tapvideo[xfuser]'" if is_missing else str(error)
        raise _refusal(reason) from error
    except Exception as error:  # it asks the GPU for its properties while it is imported, and fails in any way without
        raise _refusal(f"it needs an NVIDIA GPU to be imported: {type(error).__name__}: {error}") from error


def _initialise(state: ModuleType, sizes: tuple[int, int, int], ring: int) -> None:
    dp, cfg, sp = sizes
    backend = dist.get_backend()
    local = torch.cuda.current_device() if torch.cuda.is_available() else 0
    try:
        state.init_distributed_environment(dist.get_world_size(), dist.get_rank(), local_rank=local, backend=backend)
        state.initialize_model_parallel(
            data_parallel_degree=dp,
            classifier_free_guidance_degree=cfg,
            ulysses_degree=sp // ring,
            ring_degree=ring,
            backend=backend,
        )
    except (AssertionError, RuntimeError) as error:
        raise _refusal(f"it could not make its groups: {type(error).__name__}: {error}") from error


def _check_members(groups: Mapping[str, dist.ProcessGroup], sizes: tuple[int, int, int]) -> None:
    """Another order would give every rank the wrong tokens and branches, without any error."""
    mesh = torch.arange(dist.get_world_size()).view(sizes)
    here = (mesh == dist.get_rank()).nonzero()[0].tolist()
    for dim, axis in enumerate(AXES):
        expected = mesh[tuple(slice(None) if i == dim else at for i, at in enumerate(here))].tolist()
        found = dist.get_process_group_ranks(groups[axis])
        if found != expected:
            raise _refusal(f"its {axis} group of rank {dist.get_rank()} is {found}, and {expected} is needed")


def _refusal(reason: str) -> ConfigError:
    return ConfigError(f"parallel.groups='xfuser' is not possible here: {reason}; allowed: mesh")
