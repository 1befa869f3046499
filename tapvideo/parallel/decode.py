"""Who decodes a clip that several ranks made, and how they share that."""

import copy
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import nn

from tapvideo.checks import ConfigError
from tapvideo.parallel.comm import Comm, PeerLost
from tapvideo.parallel.config import ParallelConfig
from tapvideo.parallel.topology import Topology

LARGEST_WHOLE = 1280 * 720
"""Pixels of a frame above which one rank decodes in tiles; a Wan VAE takes some 10 GB for these in fp32."""


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """What this rank does with the latents of its clip."""

    decodes: bool
    """Whether it takes part; a rank that does not needs no frames."""
    how: str
    """`whole`, as the VAE is set; in `tiles`; or by `rows`, each rank some of them (DistVAE)."""
    reason: str


def plan_decode(config: ParallelConfig, topology: Topology, vae: Any, *, height: int, width: int) -> DecodePlan:
    """What `parallel.vae` comes to for a clip of this size; the same `how` on all ranks of a clip.

    Raises:
        ConfigError: if `distvae` is asked for and not possible.
    """
    ranks = topology.clip.size
    if ranks == 1:
        return DecodePlan(True, "whole", "one rank makes each clip")
    if config.vae == "all":
        return DecodePlan(True, "whole", "parallel.vae=all")
    if config.vae == "rank0":
        return DecodePlan(topology.is_writer, "whole", "parallel.vae=rank0")
    refusal = rows_refusal(vae, ranks, height=height, width=width)
    if refusal is None:
        return DecodePlan(True, "rows", f"{ranks} ranks share {_latent_rows(vae, height)} latent rows")
    if config.vae == "distvae":
        raise ConfigError(f"parallel.vae='distvae' is not possible here: {refusal}; allowed: auto, rank0, all")
    if height * width > LARGEST_WHOLE and hasattr(vae, "use_tiling"):
        return DecodePlan(topology.is_writer, "tiles", f"one rank decodes in tiles: {refusal}")
    return DecodePlan(topology.is_writer, "whole", f"one rank decodes: {refusal}")


def rows_refusal(vae: Any, ranks: int, *, height: int, width: int) -> str | None:
    """Why DistVAE cannot share the rows of a clip of this size among the ranks; None where it can."""
    if importlib.util.find_spec("distvae") is None:
        return "DistVAE is not installed (pip install 'tapvideo[distvae]')"
    from distvae.vae import decoder_adapter_name

    if decoder_adapter_name(vae) is None:
        return f"DistVAE does not know the decoder of {type(vae).__name__}"
    if any("forward" in vars(module) for module in vae.decoder.modules()):
        return "single layers of the VAE are hooked, as offload=group does"
    if getattr(vae, "use_tiling", False) and _is_tiled(vae, height, width):
        return "vae_tiling cuts the clip into tiles"
    rows, unit, reach = _latent_rows(vae, height), _row_unit(vae), _reach(vae.decoder)
    if rows % unit:
        return f"{rows} latent rows are no multiple of {unit}"
    needed = ranks * unit * reach
    return None if rows >= needed else f"{ranks} ranks need {needed} latent rows, and there are {rows}"


@contextmanager
def sharded_decoder(vae: Any, plan: DecodePlan, topology: Topology) -> Iterator[None]:
    """The VAE decodes as planned for the length of a block; afterwards it is what it was.

    Frames come out whole on every rank that decodes. What ranks tell each other is not in the ledger.

    Raises:
        PeerLost: if another rank does not answer while rows are shared.
    """
    if plan.how == "rows":
        with _by_rows(vae, topology.clip):
            yield
    elif plan.how == "tiles":
        before = vae.use_tiling
        vae.enable_tiling()
        try:
            yield
        finally:
            vae.use_tiling = before
    else:
        yield


@contextmanager
def _by_rows(vae: Any, clip: Comm) -> Iterator[None]:
    from distvae.vae import parallelize_decoder

    decoder, attributes = vae.decoder, set(vars(vae))
    vae.decoder = _twin(decoder)
    try:
        parallelize_decoder(vae, clip.group)
        yield
    except RuntimeError as error:
        is_told = isinstance(error, PeerLost)
        if not is_told and (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise PeerLost(f"another rank of this run does not answer ({str(error).splitlines()[0]})") from error
        raise
    finally:
        vae.decoder = decoder
        for name in set(vars(vae)) - attributes:
            delattr(vae, name)


def _twin(module: nn.Module) -> nn.Module:
    """Modules of its own around the same weights: DistVAE takes a decoder apart, and this one can be."""
    shared = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in shared})


def _latent_rows(vae: Any, height: int) -> int:
    ratio = getattr(vae, "spatial_compression_ratio", None)
    return height // (ratio or 2 ** (len(vae.config.block_out_channels) - 1))  # those of pictures do not say


def _row_unit(vae: Any) -> int:
    """Rows that DistVAE keeps together: a VAE that folds pixels into channels ends on blocks of them."""
    patch = getattr(vae.config, "patch_size", None)
    return patch if isinstance(patch, int) and patch > 1 else 1


def _reach(decoder: nn.Module) -> int:
    """Rows of a neighbour that the widest convolution needs; a rank must have that many."""
    kernels = [m.kernel_size[-2] for m in decoder.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]
    return max(1, *(kernel // 2 for kernel in kernels))


def _is_tiled(vae: Any, height: int, width: int) -> bool:
    square = getattr(vae, "tile_sample_min_size", None)  # of pictures' VAEs
    least = (square, square) if square else (vae.tile_sample_min_height, vae.tile_sample_min_width)
    return height > least[0] or width > least[1]
