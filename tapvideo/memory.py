"""What TAP will keep between steps on this rank, known before the run, and whether there is room for it."""

import math
import os
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from tapvideo.config import ConfigError, TapConfig
from tapvideo.models import adapter_for
from tapvideo.models.base import EmbedsAlike, ModelAdapter
from tapvideo.parallel.kept import kept_bytes
from tapvideo.parallel.topology import Topology
from tapvideo.planning import make_plan
from tapvideo.schedule import StepKind

_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes on one rank, over all branches that it runs."""

    anchors: int
    """Probes and residuals of the last full steps."""
    kv: int
    """Keys and values of recomputed tokens' layers; 0 where nothing is recomputed."""

    def __str__(self) -> str:
        """E.g. ``anchors 0.56 GiB, keys and values 5.61 GiB``."""
        words = f"anchors {_size(self.anchors)}"
        return f"{words}, keys and values {_size(self.kv)}" if self.kv else words


def _size(count: int) -> str:
    """So many bytes, in a unit in which there is something to read."""
    return f"{count / _GIB:.2f} GiB" if count >= 0.1 * _GIB else f"{count / 2**20:.2f} MiB"


def kept_on_this_rank(
    transformer: Any,
    config: TapConfig,
    topology: Topology,
    *,
    latent_size: tuple[int, int, int],
    num_steps: int,
    branches: int,
) -> Kept:
    """What a transformer's branches will keep, for clips of one size; a companion's few anchors come on top.

    Args:
        transformer: of a class that TAP supports.
        config: the method and its schedule.
        topology: who shares the tokens and the branches.
        latent_size: frames, rows and columns of the latents.
        num_steps: of a run.
        branches: passes of a step.
    """
    if StepKind.FORECAST not in make_plan(config, num_steps):
        return Kept(0, 0)
    adapter = adapter_for(transformer)
    tokens = num_tokens(transformer, latent_size)
    blocks = [block for name in adapter.block_lists for block in getattr(transformer, name)]
    attentions: list[Any] = adapter.attentions(blocks)
    own = -(-tokens // topology.sp.size)  # the largest shard
    here = -(-branches // topology.cfg.size)
    probes = _probes(adapter, config, here)
    anchors = (here + probes) * config.anchors * own * attentions[0].inner_dim * transformer.dtype.itemsize
    if not config.recompute.budget:
        return Kept(anchors, 0)
    kept_layers = len(config.recompute.kv_layers) or len(blocks)
    kv = 0
    for i, attention in enumerate(attentions[: len(attentions) // len(blocks)]):  # of a block: a companion's is second
        share = tokens if config.recompute.exchange == "allgather_kv" and not i else own
        width, heads = attention.inner_dim, attention.heads
        elements = here * kept_layers * 2 * share * width
        kv += kept_bytes(elements, width // heads, dtype=transformer.dtype, kv_dtype=config.recompute.kv_dtype)
    return Kept(anchors, kv)


def _probes(adapter: ModelAdapter, config: TapConfig, branches: int) -> int:
    """How many branches keep a probe of their own."""
    if not config.needs_probe:
        return 0
    return 1 if config.probe == "modulated" and isinstance(adapter, EmbedsAlike) else branches


def num_tokens(transformer: Any, latent_size: tuple[int, int, int]) -> int:
    """Tokens of latents of this size."""
    return math.prod(adapter_for(transformer).token_grid(transformer, latent_size))


def check_shards(tokens: int, topology: Topology) -> None:
    """Refuse a mesh that the tokens cannot be spread over.

    Raises:
        ConfigError: if a rank would have none, or xfuser's attention is to work on uneven shards.
    """
    ranks, config = topology.sp.size, topology.config
    if ranks > tokens:
        raise ConfigError(f"parallel.sp={ranks} ranks cannot share {tokens} tokens; allowed: 1 to {tokens}")
    if config.attention == "usp" and tokens % ranks:
        raise ConfigError(
            f"parallel.attention='usp' needs as many tokens on every rank, and {ranks} ranks do not divide {tokens}; "
            "allowed: other sizes or ranks, or auto, ulysses, allgather_kv"
        )


def check_room(kept: Kept, config: TapConfig, device: torch.device) -> None:
    """Refuse a run whose anchors, or keys and values, will not fit, before it starts.

    Raises:
        ConfigError: with the number of bytes that are needed and free.
    """
    free = _free_bytes(device)
    if kept.anchors > free:
        raise ConfigError(
            f"tap.anchors={config.anchors} of a video of this size keep {kept.anchors / _GIB:.1f} GiB on this rank, "
            f"and {free / _GIB:.1f} GiB of {device.type} memory are free; allowed: what fits, e.g. with a smaller "
            "height, width or num_frames, fewer tap.anchors (of fewer tap.orders), more ranks, or tap=off"
        )
    where = torch.device("cpu") if config.recompute.kv_offload else device
    beside, free = (kept.anchors, free) if where.type == device.type else (0, _free_bytes(where))
    if kept.kv and kept.kv + beside > free:
        raise ConfigError(
            f"tap.recompute.budget={config.recompute.budget} keeps {kept.kv / _GIB:.1f} GiB of keys and values on this "
            f"rank, beside {beside / _GIB:.1f} GiB of anchors, and {free / _GIB:.1f} GiB of {where.type} memory "
            "are free; allowed: what fits, e.g. with tap.recompute.kv_dtype=fp8, a list of tap.recompute.kv_layers, "
            "tap.recompute.kv_offload=true, or more ranks"
        )


def _free_bytes(device: torch.device) -> int:
    """That this rank may still take; the ranks of a machine share its memory."""
    if device.type != "cuda":
        return psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's, but in nobody's use
    return torch.cuda.mem_get_info(device)[0] + idle
