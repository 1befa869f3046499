"""A plan as markdown, and as plain values."""

from dataclasses import asdict, dataclass
from typing import Any

from tapvideo.parallel.estimate import Clip, Estimate, ScalingRow, StepCost
from tapvideo.parallel.kept import kept_bytes
from tapvideo.parallel.plan_config import PlanConfig
from tapvideo.schedule import StepKind

MESSAGES = ("attention", "output", "errors", "guidance")
LINKS = {"nvlink": "all GPUs joined by NVLink", "internode": "NVLink in nodes of {}, the network between them"}
_MIB, _GIB = 2**20, 2**30


@dataclass(frozen=True, slots=True)
class Planned:
    """All figures of a plan."""

    config: PlanConfig
    clip: Clip
    chosen: Estimate
    """The mesh that was asked for."""
    seconds_alone: float
    """One GPU, un-accelerated."""
    tables: dict[str, list[ScalingRow]]
    """Scaling, by kind of link."""


def as_markdown(planned: Planned) -> str:
    """Tables for people."""
    sections = [_heading(planned), _steps(planned.chosen), _room(planned), *warnings(planned)]
    sections += [_scaling(planned, link) for link in planned.tables]
    sections.append(
        "Seconds are of the denoising loop, without text encoder and VAE; nothing is taken to overlap. Memory is of "
        "the last method, without activations. Of several ranks, the one with most to do is shown."
    )
    return "\n\n".join(sections)


def warnings(planned: Planned) -> list[str]:
    """What will not fit on a GPU, with the numbers, and what would help."""
    room, limit = planned.chosen.room, planned.config.gpu_gib * _GIB
    if room.on_gpu <= limit:
        return []
    rest = room.on_gpu - (0 if room.offloads else room.kept)
    has = f"gpu_gib={planned.config.gpu_gib:g}"
    if rest > limit:
        return [
            f"**Warning:** weights and anchors take {rest / _GIB:.1f} GiB, and {has}; what helps: offload=model, "
            "more ranks (parallel.sp, parallel.cfg=2), fewer tap.anchors."
        ]
    arch, recompute = planned.clip.arch, planned.config.tap.recompute
    helps = ["tap.recompute.kv_offload=true (then on the CPU)", "tap.recompute.kv_layers=[..]", "more ranks"]
    if recompute.kv_dtype == "model":
        numbers = room.kept // planned.clip.dtype.itemsize
        fp8 = kept_bytes(numbers, arch.head_dim, dtype=planned.clip.dtype, kv_dtype="fp8")
        helps.insert(0, f"tap.recompute.kv_dtype=fp8 (then {fp8 / _GIB:.1f} GiB)")
    return [
        f"**Warning:** kept keys and values take {room.kept / _GIB:.1f} GiB, and beside {rest / _GIB:.1f} GiB of "
        f"weights and anchors {has} leaves {(limit - rest) / _GIB:.1f}; what helps: {', '.join(helps)}."
    ]


def _heading(planned: Planned) -> str:
    config, clip, chosen = planned.config, planned.clip, planned.chosen
    grid = " x ".join(map(str, clip.grid))
    full = chosen.plan.count(StepKind.FULL)
    recomputed = f"{chosen.recomputed:,} tokens ({config.tap.recompute.budget:.1%})"
    recomputed += f" by {chosen.exchange}" if chosen.mesh.sp > 1 else ""
    lines = [
        f"# {config.model.name}, {config.num_frames} frames of {config.height} x {config.width}, "
        f"{config.world} rank{'s' if config.world > 1 else ''}",
        "",
        f"* {grid} = {clip.tokens:,} tokens of {clip.arch.dim:,} numbers, {clip.arch.layers} layers"
        f"{f' of each of {clip.arch.experts} experts' if clip.arch.experts > 1 else ''}, "
        f"{clip.branches} guidance branch{'es' if clip.branches > 1 else ''}, {config.dtype}",
        f"* mesh (dp x cfg x sp) {chosen.mesh}" + (f"; full steps by {chosen.attention}" if chosen.mesh.sp > 1 else ""),
        f"* {len(chosen.plan)} steps, {full} of them full; recomputed on the others: "
        + (recomputed if chosen.recomputed else "nothing"),
        f"* {config.tflops:g} TFLOP/s at {config.efficiency:.0%}, memory {config.memory:g} GB/s, "
        f"NVLink {config.nvlink:g} GB/s in nodes of {config.gpus_per_node}, {config.internode:g} GB/s between them, "
        f"{config.latency:g} us a collective",
    ]
    return "\n".join(lines)


def _steps(chosen: Estimate) -> str:
    steps = list(chosen.steps.values())
    rows = [
        ["one rank, one step", *chosen.steps],
        ["TFLOP", *(f"{_figure(step.flops / 1e12)}" for step in steps)],
        ["attention, a layer and branch", *(_mib(step.per_layer.bytes) for step in steps)],
        *([what, *(_mib(_about(step, what)) for step in steps)] for what in MESSAGES),
        ["**received**", *(_mib(step.received) for step in steps)],
        ["collectives", *(f"{sum(t.calls for t in step.messages.values()):,}" for step in steps)],
        ["seconds of computing", *(f"{_figure(step.compute)}" for step in steps)],
        ["seconds of memory traffic", *(f"{_figure(step.memory)}" for step in steps)],
        ["seconds of messages", *(f"{_figure(step.links)}" for step in steps)],
        ["**seconds**", *(f"{_figure(step.seconds)}" for step in steps)],
    ]
    return _table(rows)


def _about(step: StepCost, what: str) -> int:
    return sum(tally.bytes for (_, about), tally in step.messages.items() if about == what)


def _room(planned: Planned) -> str:
    room = planned.chosen.room
    rows = [
        ["one rank keeps", "GiB"],
        [f"weights of the transformer{'s' if planned.clip.arch.experts > 1 else ''}", _gib(room.transformer)],
        ["weights of encoders and VAE", _gib(room.text_and_vae)],
        ["anchors", _gib(room.anchors)],
        ["keys and values" + (" (on the CPU)" if room.offloads and room.kept else ""), _gib(room.kept)],
        [f"**on the GPU**, of {planned.config.gpu_gib:g}", _gib(room.on_gpu)],
    ]
    return _table(rows)


def _scaling(planned: Planned, link: str) -> str:
    rows, alone = planned.tables[link], planned.seconds_alone
    recomputes = bool(planned.chosen.recomputed)
    heading = ["GPUs", "un-accelerated", "x", "TAP", "x"]
    heading += [f"TAP, {planned.config.tap.recompute.budget:.0%} recomputed", "x"] if recomputes else []
    lines = [[*heading, "dp x cfg x sp", "full, exchange", "GiB"]]
    for row in rows:
        cells = [str(row.gpus)]
        for estimate, seconds in [(row.plain, row.plain.seconds_full), *((e, e.seconds) for e in row.methods)]:
            cells += [f"{_figure(seconds)} s", f"{speedup(alone, estimate, seconds):.1f}"]
        last = row.methods[-1]
        over = last.room.on_gpu > planned.config.gpu_gib * _GIB
        gib = f"{last.room.on_gpu / _GIB:.1f}{' (too much)' if over else ''}"
        how = f"{last.attention}, {last.exchange}" if last.mesh.sp > 1 else "-"
        lines.append([*cells, str(last.mesh), how, gib])
    where = LINKS[link].format(planned.config.gpus_per_node)
    title = f"Seconds a clip, and clips a second against one GPU un-accelerated ({_figure(alone)} s); {where}:"
    return f"{title}\n\n{_table(lines)}"


def speedup(alone: float, estimate: Estimate, seconds: float) -> float:
    """Clips a second against those of one GPU that is not accelerated."""
    return estimate.mesh.dp * alone / seconds


def as_json(planned: Planned) -> dict[str, Any]:
    """The same figures as plain values; bytes, seconds and operations without units of thousands."""
    clip, chosen = planned.clip, planned.chosen
    return {
        "model": planned.config.model.name,
        "grid": list(clip.grid),
        "tokens": clip.tokens,
        "dim": clip.arch.dim,
        "branches": clip.branches,
        "schedule": {"steps": len(chosen.plan), "full": chosen.plan.count(StepKind.FULL)},
        "chosen": _estimate_json(chosen),
        "seconds_one_gpu_unaccelerated": planned.seconds_alone,
        "scaling": {link: [_row_json(planned, row) for row in rows] for link, rows in planned.tables.items()},
        "warnings": [text.replace("*", "") for text in warnings(planned)],
    }


def _estimate_json(chosen: Estimate) -> dict[str, Any]:
    return {
        "mesh": asdict(chosen.mesh),
        "attention": chosen.attention,
        "exchange": chosen.exchange,
        "recomputed_tokens": chosen.recomputed,
        "seconds": chosen.seconds,
        "seconds_unaccelerated": chosen.seconds_full,
        "steps": {kind: _step_json(step) for kind, step in chosen.steps.items()},
        "bytes_on_rank": {**asdict(chosen.room), "on_gpu": chosen.room.on_gpu},
    }


def _step_json(step: StepCost) -> dict[str, Any]:
    return {
        "flops": step.flops,
        "bytes_received": step.received,
        "bytes_received_per_layer": step.per_layer.bytes,
        "messages": [
            {"kind": kind, "what": what, "bytes": tally.bytes, "calls": tally.calls}
            for (kind, what), tally in step.messages.items()
        ],
        "seconds": {"computing": step.compute, "memory": step.memory, "messages": step.links, "all": step.seconds},
    }


def _row_json(planned: Planned, row: ScalingRow) -> dict[str, Any]:
    plain, alone = row.plain, planned.seconds_alone
    return {
        "gpus": row.gpus,
        "unaccelerated": {
            "mesh": asdict(plain.mesh),
            "seconds": plain.seconds_full,
            "speedup": speedup(alone, plain, plain.seconds_full),
        },
        "methods": [
            {
                "mesh": asdict(e.mesh),
                "recomputed_tokens": e.recomputed,
                "seconds": e.seconds,
                "speedup": speedup(alone, e, e.seconds),
                "bytes_on_gpu": e.room.on_gpu,
            }
            for e in row.methods
        ],
    }


def _table(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|---|" + "---:|" * (len(rows[0]) - 1))
    return "\n".join(lines)


def _mib(num_bytes: int) -> str:
    return f"{_figure(num_bytes / _MIB)} MiB" if num_bytes else "-"


def _gib(num_bytes: int) -> str:
    return _figure(num_bytes / _GIB) if num_bytes else "-"


def _figure(value: float) -> str:
    """Three digits or more, none of them for show."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 100 else f"{value:.1f}"
