"""Joining the other ranks of a run, agreeing with them on what is run, and failing together."""

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from tapvideo.checks import ConfigError
from tapvideo.parallel.comm import Comm, PeerLost
from tapvideo.parallel.config import ParallelConfig
from tapvideo.parallel.topology import Topology, alone, build_topology, mesh_sizes

_FAILURE = "failure"
_LAST_WORDS = timedelta(seconds=2)


class RankFailed(RuntimeError):
    """This rank was the first to fail; `error` is what happened to it."""

    def __init__(self, rank: int, error: Exception) -> None:
        super().__init__(f"rank {rank}: {error}")
        self.rank = rank
        self.error = error


class Hushed(RuntimeError):
    """Another rank has failed and says why; this one ends without a word."""


def world_size() -> int:
    """Processes of this run, as `torchrun` tells."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined(config: ParallelConfig, device: torch.device, facts: Mapping[str, Any]) -> Iterator[Topology]:
    """The mesh of this run's ranks, for the length of a block; a process whose block failed must end.

    Args:
        config: sizes of the mesh.
        device: this rank's.
        facts: what all ranks must have alike (configuration, prompts, versions), by name.

    Raises:
        ConfigError: if the mesh does not fit the number of ranks.
        PeerLost: if the ranks do not find each other.
        RankFailed: if anything goes wrong on this rank first; `__cause__` is what did.
        Hushed: if another rank was first.
    """
    sizes = mesh_sizes(config, world_size())  # before anything waits for anybody
    if sizes == (1, 1, 1):
        yield alone()
        return
    store = start_ranks(config, device)
    try:
        check_agreement(Comm(dist.group.WORLD), {"parallel": asdict(config), **facts})  # other meshes would not meet
        yield build_topology(config, device)
    except Exception as error:
        # The group is left as it is: waiting for ranks that are gone could take until the timeout.
        if not _is_first(store):
            raise Hushed from None
        raise RankFailed(dist.get_rank(), error) from error
    else:
        dist.destroy_process_group()


def end_if_torn(code: int | str | None) -> None:
    """End this process at once if a block of `joined` failed in it, before threads of its group can abort it."""
    if not dist.is_initialized():
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # a reader who has left
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def start_ranks(config: ParallelConfig, device: torch.device) -> dist.Store:
    """Initialise `torch.distributed` from what `torchrun` has put in the environment: NCCL on GPUs, gloo on CPUs.

    Returns:
        A store that all ranks share.

    Raises:
        PeerLost: if the ranks do not find each other.
    """
    timeout = timedelta(seconds=config.timeout)
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "nccl"
    try:
        store, rank, world = next(iter(dist.rendezvous("env://", timeout=timeout)))
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise PeerLost(f"{world_size()} ranks did not find each other in {config.timeout:g} s ({reason})") from error
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"tapvideo-{attempt}", store)


def check_agreement(world: Comm, facts: Mapping[str, Any]) -> None:
    """Stop ranks that were started for different things, before they wait for each other in vain.

    Raises:
        ConfigError: naming what differs, and on which ranks.
    """
    words = {name: json.dumps(value, sort_keys=True, default=str) for name, value in facts.items()}
    everyone = world.exchange_objects(words)
    for name, own in everyone[0].items():
        others = {rank: their.get(name) for rank, their in enumerate(everyone) if their.get(name) != own}
        if others:
            rank, value = next(iter(others.items()))
            raise ConfigError(
                f"{name} differs between ranks: {_short(own)} on rank 0, {_short(str(value))} on rank {rank}; "
                "allowed: the same command and the same versions on every rank"
            )


def check_same_latents(topology: Topology, latents: torch.Tensor) -> None:
    """Compare the latents of all ranks that make one clip: they are to be the same bit for bit.

    Raises:
        PeerLost: if they are not, since from there on nothing that the ranks do together makes sense.
    """
    digest = hashlib.sha256(latents.detach().float().cpu().numpy().tobytes()).digest()[:7]
    own = torch.tensor([int.from_bytes(digest)], device=latents.device)
    topology.ledger.turn(-1, "agreement")
    everyone = topology.clip.all_gather(own, [1] * topology.clip.size, what="agreement").tolist()
    if len(set(everyone)) > 1:
        raise PeerLost("ranks have come to different latents: they are not of the same kind of device or software")


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_first(store: dist.Store) -> bool:
    """Whether no other rank has failed before this one."""
    own, world = dist.get_rank(), dist.get_world_size()
    try:
        first = store.compare_set(_FAILURE, "", str(own)).decode()
        store.set(f"{_FAILURE}-{own}", "")
    except RuntimeError:  # whoever kept the store is gone too: better said twice than never
        return True
    if own == 0:  # it may keep the store itself: those that fail beside it are to find it there
        with suppress(RuntimeError):
            store.wait([f"{_FAILURE}-{rank}" for rank in range(world)], _LAST_WORDS)
    return first == str(own)
