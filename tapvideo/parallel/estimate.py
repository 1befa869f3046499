"""Seconds and memory of a run on a mesh of GPUs that need not exist, from the closed forms of `cost.py`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from tapvideo.checks import ConfigError
from tapvideo.config import TapConfig
from tapvideo.parallel.arch import Architecture
from tapvideo.parallel.attention import resolve
from tapvideo.parallel.cost import Branch, Kind, Messages, Method, Share
from tapvideo.parallel.ledger import Tally
from tapvideo.predictors import candidate_bank
from tapvideo.schedule import Plan, StepKind

_ROUNDING = 1e-9  # as in `recompute.stale_tokens`


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One GPU, and the links to others."""

    tflops: float
    """As reached."""
    memory: float
    """GB/s, as reached; so are the links'."""
    nvlink: float
    internode: float
    latency: float
    """Microseconds of a collective."""
    gpus_per_node: int


@dataclass(frozen=True, slots=True)
class Mesh:
    """Ranks on every axis; `sp` is the innermost, so that its ranks are neighbours."""

    dp: int
    cfg: int
    sp: int

    def __str__(self) -> str:
        """E.g. ``1 x 2 x 4``."""
        return f"{self.dp} x {self.cfg} x {self.sp}"

    def far(self, gpus_per_node: int) -> tuple[float, bool]:
        """Share of the `sp` peers that are on other nodes, of the worst rank, and whether any guidance peer is."""
        share, halves = 0.0, False
        for rank in range(self.dp * self.cfg * self.sp):
            node, first = rank // gpus_per_node, rank - rank % self.sp
            others = sum(peer // gpus_per_node != node for peer in range(first, first + self.sp))
            share = max(share, others / max(1, self.sp - 1))
            first_half = rank // self.sp % self.cfg == 0
            halves |= self.cfg > 1 and first_half and (rank + self.sp) // gpus_per_node != node
        return share, halves


@dataclass(frozen=True, slots=True)
class Clip:
    """What is to be made."""

    arch: Architecture
    grid: tuple[int, int, int]
    text: int
    dtype: torch.dtype
    branches: int
    """2 with guidance, 1 without."""
    offload: str = "none"
    """Weights on the GPU in the loop: all (`none`), the transformer's (`model`), or next to none (`group`)."""

    @property
    def tokens(self) -> int:
        """Tokens of one branch."""
        return math.prod(self.grid)


@dataclass(frozen=True, slots=True)
class StepCost:
    """One step on the rank that has most to do, over all of its guidance branches."""

    flops: int
    messages: Messages
    per_layer: Tally
    """Of the attention of one layer of one branch."""
    compute: float
    """Seconds of matrix products and attention."""
    memory: float
    """Seconds of reading and writing anchors and embeddings."""
    links: float
    """Seconds of messages; nothing is taken to overlap."""

    @property
    def seconds(self) -> float:
        """All of them."""
        return self.compute + self.memory + self.links

    @property
    def received(self) -> int:
        """Bytes from other ranks."""
        return sum(tally.bytes for tally in self.messages.values())


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes on one rank over all of its guidance branches, without activations."""

    transformer: int
    text_and_vae: int
    anchors: int
    kept: int
    offloads: bool
    """Whether kept keys and values lie on the CPU."""

    @property
    def on_gpu(self) -> int:
        """All that lies on the GPU."""
        return self.transformer + self.text_and_vae + self.anchors + (0 if self.offloads else self.kept)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A run on a mesh."""

    mesh: Mesh
    attention: str
    exchange: str
    recomputed: int
    """Tokens of a recompute step."""
    steps: dict[Kind, StepCost]
    room: Room
    plan: Plan

    @property
    def seconds(self) -> float:
        """Of the denoising loop; text encoder and VAE are not in it."""
        full = self.plan.count(StepKind.FULL)
        between = self.steps.get("recompute", self.steps["forecast"])
        return full * self.steps["full"].seconds + (len(self.plan) - full) * between.seconds

    @property
    def seconds_full(self) -> float:
        """The same with every step full."""
        return len(self.plan) * self.steps["full"].seconds


def estimate(clip: Clip, config: TapConfig, plan: Plan, mesh: Mesh, attention: str, machine: Machine) -> Estimate:
    """What a clip costs on a mesh; of several ranks, the one that has most to do.

    Raises:
        ValueError: if the mesh does not go with the clip or the attention.
    """
    if mesh.cfg > clip.branches:
        raise ConfigError(
            f"parallel.cfg={mesh.cfg!r} splits guidance, and there is none; allowed: 1, or guidance above 1"
        )
    if mesh.sp > clip.tokens:
        raise ConfigError(
            f"parallel.sp={mesh.sp!r} ranks cannot share {clip.tokens} tokens; allowed: 1 to {clip.tokens}"
        )
    recompute = config.recompute
    full, exchange = resolve(full=attention, exchange=recompute.exchange, heads=clip.arch.heads, ranks=mesh.sp)
    branch = Branch(
        arch=clip.arch, method=method_of(config, plan), tokens=Share.even(clip.tokens, mesh.sp), text=clip.text,
        dtype=clip.dtype, full=full, exchange=exchange,
    )  # fmt: skip
    stale = math.floor(recompute.budget * clip.tokens + _ROUNDING)
    count = clip.branches // mesh.cfg
    branches = [branch, *[replace(branch, twin=True)] * (count - 1)]
    kinds: tuple[Kind, ...] = ("full", "forecast")
    steps: dict[Kind, StepCost] = {kind: _step(branches, kind, None, mesh, machine) for kind in kinds}
    if stale:
        steps["recompute"] = _step(branches, "forecast", Share.even(stale, mesh.sp), mesh, machine)
    keeping = branches if StepKind.FORECAST in plan else []  # nothing is kept where nobody will ask for it
    experts = {"none": clip.arch.experts, "model": 1}.get(clip.offload, 0)
    room = Room(
        experts * clip.arch.transformer_bytes(clip.dtype),
        clip.arch.pipeline_bytes(clip.dtype) if clip.offload == "none" else 0,
        sum(each.anchor_bytes() for each in keeping),
        sum(each.kept_kv_bytes() for each in keeping),
        recompute.kv_offload,
    )
    return Estimate(mesh, full, exchange, stale, steps, room, plan)


def method_of(config: TapConfig, plan: Plan) -> Method:
    """What of a config decides on costs.

    Raises:
        ConfigError: if it names blocks or layers that a model has not.
    """
    recompute = config.recompute
    return Method(
        anchors=config.anchors,
        candidates=_most_candidates(config, plan),
        has_probe=config.needs_probe,
        probe_depth=config.probe_depth if config.needs_probe and config.probe != "modulated" else 0,
        proxy=config.proxy,
        choice=config.choice,
        recomputes=recompute.budget > 0,
        kv_dtype=recompute.kv_dtype,
        kv_layers=len(set(recompute.kv_layers)) or None,
    )


def _most_candidates(config: TapConfig, plan: Plan) -> int:
    """Distinct predictors of the forecast step that has most anchors and lies furthest from them."""
    if config.family == "calibrated":
        return 1
    full: list[float] = []
    furthest: tuple[int, float, list[float]] | None = None
    for step, kind in enumerate(plan):
        if kind is StepKind.FULL:
            full = [float(step), *full][: config.anchors]
        elif furthest is None or (len(full), step - full[0]) > furthest[:2]:
            furthest = len(full), step - full[0], full
    if furthest is None:
        return 1
    _, ahead, coords = furthest
    bank = candidate_bank(
        coords, coords[0] + ahead, steps_ahead=ahead, family=config.family, orders=config.orders,
        lookback=config.lookback, spacing=config.spacing,
    )  # fmt: skip
    return len(bank.labels)


def _step(branches: Sequence[Branch], kind: Kind, rows: Share | None, mesh: Mesh, machine: Machine) -> StepCost:
    branch, count = branches[0], len(branches)
    named = "recompute" if rows is not None else kind
    messages = {
        key: Tally(count * tally.bytes, count * tally.calls) for key, tally in branch.messages(kind, rows).items()
    }
    far_share, far_halves = mesh.far(machine.gpus_per_node)
    received = sum(tally.bytes for tally in messages.values())
    near, far = received * (1 - far_share), received * far_share
    if mesh.cfg > 1:
        prediction = branch.guidance_bytes() * (mesh.cfg - 1)
        messages[named, "guidance"] = Tally(prediction, 1)
        near, far = (near, far + prediction) if far_halves else (near + prediction, far)
    flops = sum(each.flops(kind, rows) for each in branches)
    calls = sum(tally.calls for tally in messages.values())
    return StepCost(
        flops=flops,
        messages=messages,
        per_layer=branch.layer_messages(named, rows),
        compute=flops / (machine.tflops * 1e12),
        memory=sum(each.traffic(kind) for each in branches) / (machine.memory * 1e9),
        links=near / (machine.nvlink * 1e9) + far / (machine.internode * 1e9) + calls * machine.latency * 1e-6,
    )


@dataclass(frozen=True, slots=True)
class ScalingRow:
    """A number of GPUs, used in the fastest way."""

    gpus: int
    plain: Estimate
    """For the un-accelerated run."""
    methods: tuple[Estimate, ...]
    """For every method asked for."""


def scaling(
    clip: Clip,
    configs: Sequence[TapConfig],
    plan: Plan,
    worlds: Sequence[int],
    *,
    dp: int,
    attention: str,
    machine: Machine,
) -> list[ScalingRow]:
    """Every number of GPUs that `dp` divides, with guidance split or not, whichever is faster."""
    rows: list[ScalingRow] = []
    for world in worlds:
        found = [_possible(clip, config, plan, world, dp, attention, machine) for config in configs]
        if all(found):
            plain = min(found[0], key=lambda e: e.seconds_full)
            rows.append(ScalingRow(world, plain, tuple(min(each, key=lambda e: e.seconds) for each in found)))
    return rows


def _possible(
    clip: Clip, config: TapConfig, plan: Plan, world: int, dp: int, attention: str, machine: Machine
) -> list[Estimate]:
    found: list[Estimate] = []
    for halves in range(1, clip.branches + 1):
        if world % (dp * halves) == 0:
            try:
                mesh = Mesh(dp, halves, world // (dp * halves))
                found.append(estimate(clip, config, plan, mesh, attention, machine))
            except ValueError:  # this mesh does not go with the heads or the tokens; another may
                continue
    return found


def without_recompute(config: TapConfig) -> TapConfig:
    """The same method that recomputes nothing."""
    return replace(config, recompute=replace(config.recompute, budget=0.0))
