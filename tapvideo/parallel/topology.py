"""The mesh of ranks: data (prompts) x guidance branches x sequence."""

import math
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist

from tapvideo.checks import ConfigError
from tapvideo.parallel.comm import Comm
from tapvideo.parallel.config import ParallelConfig
from tapvideo.parallel.ledger import Ledger

AXES = ("dp", "cfg", "sp")

_CLIP_LIMIT = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Topology:
    """Where this rank stands on every axis of the mesh."""

    config: ParallelConfig
    dp: Comm
    """Ranks that make different clips."""
    cfg: Comm
    """Ranks that run the guidance branches of one clip."""
    sp: Comm
    """Ranks that share the tokens of one branch."""
    clip: Comm
    """Ranks that make one clip: all of `cfg` and `sp`."""
    world: Comm
    ledger: Ledger = field(default_factory=Ledger)
    """What this rank received, over all axes."""

    @property
    def is_writer(self) -> bool:
        """Whether this rank writes the clips of its data-parallel group."""
        return self.cfg.rank == 0 and self.sp.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether one rank makes each clip."""
        return self.clip.size == 1

    def __str__(self) -> str:
        """E.g. ``dp 1 x cfg 2 x sp 4``."""
        return " x ".join(f"{name} {getattr(self, name).size}" for name in AXES)


def alone() -> Topology:
    """One rank that does everything, without `torch.distributed`."""
    ledger = Ledger()
    one = Comm(ledger=ledger)
    return Topology(ParallelConfig(), one, one, one, one, one, ledger)


def mesh_sizes(config: ParallelConfig, world: int) -> tuple[int, int, int]:
    """Ranks on every axis; `sp` takes what dp and cfg leave where it is not given.

    Raises:
        ConfigError: if the product is not the number of ranks.
    """
    outer = config.dp * config.cfg
    if config.sp is None:
        if world % outer:
            asked = f"parallel.dp={config.dp} x parallel.cfg={config.cfg}"
            raise ConfigError(f"{asked} does not divide {world} ranks; allowed products: {_divisors(world)}")
        return config.dp, config.cfg, world // outer
    sizes = (config.dp, config.cfg, config.sp)
    if math.prod(sizes) != world:
        asked = " x ".join(f"parallel.{name}={size}" for name, size in zip(AXES, sizes, strict=True))
        raise ConfigError(
            f"{asked} makes {math.prod(sizes)} ranks, and there are {world}; "
            f"allowed: a product of {world}, each one of {_divisors(world)} (parallel.sp=null takes the rest)"
        )
    return sizes


def build_topology(config: ParallelConfig, device: torch.device) -> Topology:
    """The mesh of an initialised `torch.distributed`; one rank where it is not initialised.

    Raises:
        ConfigError: if the sizes do not fit the number of ranks.
    """
    if not dist.is_initialized():
        mesh_sizes(config, 1)
        return alone()
    sizes = mesh_sizes(config, dist.get_world_size())
    ledger = Ledger()
    if config.groups == "xfuser":
        from tapvideo.parallel.xfuser_groups import xfuser_groups

        groups = xfuser_groups(sizes, ring=config.ring)
    else:
        groups = _axis_groups(sizes, timedelta(seconds=config.timeout))
    dp, cfg, sp = (Comm(groups[name] if size > 1 else None, ledger) for name, size in zip(AXES, sizes, strict=True))
    world = Comm(dist.group.WORLD, ledger)
    clip = _clip_comm(dp, cfg, sp, world, timedelta(seconds=config.timeout))
    return Topology(config, dp, cfg, sp, clip, world, ledger)


def _axis_groups(sizes: tuple[int, int, int], timeout: timedelta) -> dict[str, dist.ProcessGroup]:
    """This rank's group on every axis, laid out as torch's DeviceMesh does, which would not pass the timeout on."""
    mesh = torch.arange(math.prod(sizes)).view(sizes)
    groups: dict[str, dist.ProcessGroup] = {}
    for dim, (name, size) in enumerate(zip(AXES, sizes, strict=True)):
        if size > 1:
            ranks = mesh.movedim(dim, -1).reshape(-1, size).tolist()
            # Groups that make different clips wait for each other as long as a clip takes; a rank that is stuck is
            # noticed by the others of its own clip.
            limit = _CLIP_LIMIT if name == "dp" else timeout
            group, _ = dist.new_subgroups_by_enumeration(ranks, timeout=limit)
            assert isinstance(group, dist.ProcessGroup)  # every rank is in one
            groups[name] = group
    return groups


def _clip_comm(dp: Comm, cfg: Comm, sp: Comm, world: Comm, timeout: timedelta) -> Comm:
    """The ranks of one clip; a group of its own only where no axis has just these."""
    if cfg.size == 1:
        return sp
    if sp.size == 1:
        return cfg
    if dp.size == 1:
        return world
    each = cfg.size * sp.size  # dp is the outer axis, so that they are neighbours
    ranks = [list(range(first, first + each)) for first in range(0, world.size, each)]
    group, _ = dist.new_subgroups_by_enumeration(ranks, timeout=timeout)
    assert isinstance(group, dist.ProcessGroup)  # every rank is in one
    return Comm(group, world.ledger)


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)
