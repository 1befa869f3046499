"""`python -m tapvideo.cli.ledger`: bytes that ranks tell each other, measured on this machine, beside the formulas."""

import argparse
import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from tapvideo.config import RecomputeConfig, ScheduleConfig, TapConfig
from tapvideo.enable import enable_tap
from tapvideo.models.wan import random_transformer
from tapvideo.parallel.arch import Architecture
from tapvideo.parallel.attention import ATTENTIONS, EXCHANGES
from tapvideo.parallel.config import ParallelConfig
from tapvideo.parallel.cost import Branch, Messages, Method, Share
from tapvideo.parallel.ledger import Ledger
from tapvideo.parallel.topology import build_topology
from tapvideo.stack import RECOMPUTED

RANKS, SHARES = (2, 4, 8), (0.05, 0.10, 0.25)
GRID = (5, 8, 8)  # 320 tokens: every share is a whole number of them, and every number of ranks divides them
ARCH = Architecture(layers=2, heads=8, head_dim=128, ffn_dim=256)
_TEXT, _FULL, _NUM_STEPS = 4, 3, 12
_TIMEOUT = timedelta(seconds=120)


@dataclass(frozen=True, slots=True)
class Run:
    """Attention of full steps, exchange and share of recomputed tokens."""

    attention: str
    exchange: str
    share: float

    @property
    def step(self) -> str:
        """What its last step is."""
        return f"recompute {self.share:.0%}" if self.share else "forecast"


@dataclass(frozen=True, slots=True)
class Told:
    """What one rank received in a run."""

    ledger: Ledger
    tokens: Share
    stale: int
    """Of its own tokens, on the last step."""


@dataclass(frozen=True, slots=True)
class Line:
    """What a mean rank receives of one message: per layer of attention, per step of the rest."""

    ranks: int
    step: str
    how: str
    measured: float
    formula: float
    numbers: float
    """Measured, in (tokens x width) numbers for attention, numbers a token for the rest."""
    is_equal: bool
    """Whether every rank received on this step what the formulas say, byte by byte, and nothing else."""


def main(argv: list[str] | None = None) -> None:
    """Print the table; 1 is the exit code where a byte is not as foretold."""
    parser = argparse.ArgumentParser(prog="python -m tapvideo.cli.ledger", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=list(RANKS), help="that divide 8 heads (default 2 4 8)")
    args = parser.parse_args(argv)
    for ranks in args.ranks:
        if ranks < 2 or ARCH.heads % ranks:
            parser.error(f"--ranks {ranks} is not possible; allowed: 2, 4, 8")
    torch.set_num_threads(1)  # forked children hang in OpenMP if their parent has used it
    transformer = random_transformer(
        dim=ARCH.dim, ffn_dim=ARCH.ffn_dim, num_layers=ARCH.layers, device=torch.device("cpu"), dtype=torch.float32
    )
    lines = [line for ranks in args.ranks for line in table_of(ranks, forked(ranks, transformer))]
    print(as_markdown(lines))
    if not all(line.is_equal for line in lines):
        sys.exit("tapvideo: ranks received other bytes than the formulas say")


def runs() -> Iterator[Run]:
    """Both attentions of full steps with forecasts alone, then every exchange with every share."""
    for attention in ATTENTIONS:
        yield Run(attention, attention, 0.0)
    for exchange in EXCHANGES:
        for share in SHARES:
            yield Run("allgather_kv" if exchange == "allgather_kv" else "ulysses", exchange, share)


def measure(run: Run, transformer: nn.Module) -> Told:
    """Three full steps and one between, which the ranks of this group share."""
    topology = build_topology(ParallelConfig(attention=run.attention), torch.device("cpu"))
    schedule = ScheduleConfig(kind="explicit", steps=list(range(_FULL)), min_steps=0)
    recompute = RecomputeConfig(budget=run.share, exchange=run.exchange)
    tap = enable_tap(transformer, TapConfig(schedule=schedule, recompute=recompute), topology)
    generator = torch.Generator().manual_seed(0)
    frames, rows, columns = GRID
    latents, drift = torch.randn(2, 1, ARCH.in_channels, frames, 2 * rows, 2 * columns, generator=generator)
    text = torch.randn(1, _TEXT, ARCH.text_dim, generator=generator)
    context: Any = transformer.cache_context
    for step in range(_FULL + 1):
        with torch.no_grad(), context("cond", step_index=step, num_inference_steps=_NUM_STEPS):
            transformer(latents + 0.1 * step * drift, torch.full((1,), 900 - 50 * step), text)
    record = tap.trace.records[-1]
    assert record.choice is not None
    stale = int((record.choice == record.labels.index(RECOMPUTED)).sum()) if run.share else 0
    counts = topology.sp.exchange_objects(record.choice.shape[1])
    tap.disable()
    return Told(topology.ledger, Share(tuple(counts), topology.sp.rank), stale)


def table_of(ranks: int, told: dict[Run, list[Told]]) -> Iterator[Line]:
    """Rows of one number of ranks."""
    for run, everyone in told.items():
        stale = tuple(rank.stale for rank in everyone)
        branches = [
            Branch(arch=ARCH, method=Method(recomputes=run.share > 0), tokens=rank.tokens, text=_TEXT,
                   dtype=torch.float32, full=run.attention, exchange=run.exchange)
            for rank in everyone
        ]  # fmt: skip
        full = [branch.messages("full") for branch in branches]
        last = [branch.messages("forecast", Share(stale, r)) for r, branch in enumerate(branches)]
        if run.share:
            yield _line(ranks, run.step, "attention", run.exchange, everyone, last, at=_FULL)
        else:
            yield _line(ranks, "full", "attention", run.attention, everyone, full, at=0)
        if run == Run("ulysses", "ulysses", 0.0):  # the rest is alike in all
            yield _line(ranks, run.step, "output", "projected output", everyone, last, at=_FULL)
        if run == Run("ulysses", "ulysses", SHARES[0]):
            yield _line(ranks, run.step, "errors", "errors", everyone, last, at=_FULL)


def _line(
    ranks: int, step: str, what: str, how: str, everyone: list[Told], expected: list[Messages], *, at: int
) -> Line:
    found = [
        {(kind, about): tally for (on, kind, about), tally in rank.ledger.tallies.items() if on == at}
        for rank in everyone
    ]
    measured, formula = (
        sum(tally.bytes for rank in every for (_, about), tally in rank.items() if about == what) / ranks
        for every in (found, expected)
    )
    times = ARCH.layers if what == "attention" else 1
    per = times * everyone[0].tokens.all * torch.float32.itemsize * (ARCH.dim if what == "attention" else 1)
    return Line(ranks, step, how, measured / times, formula / times, measured / per, found == expected)


def closed_form(how: str) -> str:
    """Of a mean rank: T d numbers a layer of attention, numbers a token of the rest; f of the tokens are recomputed."""
    return {
        "ulysses": "4 f (P - 1) / P^2",
        "allgather_kv": "2 f (P - 1) / P",
        "allgather_q": f"(2 + 1 / {ARCH.head_dim}) f (P - 1) / P",
        "projected output": f"{ARCH.out_numbers} (P - 1) / P",
    }.get(how, "(P - 1) / P")


def as_markdown(lines: list[Line]) -> str:
    """The table of the README."""
    ranks = sorted({line.ranks for line in lines})
    found = {(line.step, line.how, line.ranks): line for line in lines}
    tokens = GRID[0] * GRID[1] * GRID[2]
    rows = [
        f"Bytes that a rank receives, mean of all ranks, measured / formula, in fp32 with {tokens} tokens of width "
        f"{ARCH.dim}: attention per layer, the rest per step. In brackets what the closed form is of: T d numbers for "
        "attention, numbers a token for the rest.",
        "",
        "| step | message | closed form | " + " | ".join(f"P = {p}" for p in ranks) + " |",
        "|---|---|---|" + "---:|" * len(ranks),
    ]
    kinds = ("full", "forecast", "recompute")
    shown = dict.fromkeys((line.step, line.how) for line in lines)
    for step, how in sorted(shown, key=lambda key: kinds.index(key[0].split()[0])):
        form = closed_form(how).replace("f ", "" if step == "full" else "f ")
        cells = " | ".join(_cell(found[step, how, p]) for p in ranks)
        rows.append(f"| {step} | {how} | {form} | {cells} |")
    return "\n".join(rows)


def _cell(line: Line) -> str:
    wrong = "" if line.is_equal else " **not equal on every rank**"
    return f"{line.measured:,.0f} / {line.formula:,.0f} [{line.numbers:.4g}]{wrong}"


def forked(ranks: int, transformer: nn.Module) -> dict[Run, list[Told]]:
    """What every rank of a gloo group was told in every run.

    Raises:
        RuntimeError: if a rank failed.
    """
    context = multiprocessing.get_context("fork")
    results: Any = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        workers = [
            context.Process(target=_rank, args=(r, ranks, store, transformer, results), daemon=True)
            for r in range(ranks)
        ]
        for worker in workers:
            worker.start()
        found: dict[int, Any] = dict(results.get(timeout=2 * _TIMEOUT.total_seconds()) for _ in workers)
        for worker in workers:
            worker.join(5)
    failed = [value for value in found.values() if isinstance(value, str)]
    if failed:
        raise RuntimeError(failed[0])
    return {run: [found[rank][i] for rank in range(ranks)] for i, run in enumerate(runs())}


def _rank(rank: int, ranks: int, store: str, transformer: nn.Module, results: Any) -> None:
    torch.set_num_threads(1)
    try:
        address = f"file://{store}"
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=ranks, timeout=_TIMEOUT)
        told = [measure(run, transformer) for run in runs()]
        dist.barrier()
        dist.destroy_process_group()
        results.put((rank, told))
    except Exception:
        results.put((rank, traceback.format_exc()))
    results.close()
    results.join_thread()
    os._exit(0)  # past the exit handlers that were inherited


if __name__ == "__main__":
    main()
