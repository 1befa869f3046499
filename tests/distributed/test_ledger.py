"""The formulas of `parallel/cost.py` are what ranks told each other, computed and kept: equal, not approximately."""

from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import pytest
import torch
from ranks import run_ranks
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from wan_random import random_transformer

from tapvideo import ScheduleConfig, TapConfig, enable_tap
from tapvideo.cli import ledger
from tapvideo.config import RecomputeConfig
from tapvideo.parallel.arch import Architecture
from tapvideo.parallel.attention import EXCHANGES
from tapvideo.parallel.config import ParallelConfig
from tapvideo.parallel.cost import Branch, Method, Share
from tapvideo.parallel.ledger import Tally
from tapvideo.parallel.topology import build_topology
from tapvideo.stack import RECOMPUTED

GRID = (5, 5, 7)  # 175 tokens, which neither 2, 3 nor 4 divides
FULL, STEPS = [0, 1, 3], 4
TEXT, LAYERS = 6, 2
PAIRS = [("ulysses", e) for e in EXCHANGES[:2]] + [("allgather_kv", e) for e in EXCHANGES]


@dataclass(frozen=True)
class Case:
    """A run, whose ledger is to be foretold."""

    full: str = "auto"
    exchange: str = "auto"
    dtype: torch.dtype = torch.float32
    heads: int = 12
    cfg: int = 1
    layout: str = "diagonal"
    batch: int = 1
    branches: tuple = ("cond",)
    token_timesteps: bool = False
    recompute: dict = field(default_factory=lambda: {"budget": 0.2})
    changes: dict = field(default_factory=dict)

    @property
    def config(self):
        schedule = ScheduleConfig(kind="explicit", steps=FULL, warmup=1, min_steps=0)
        recompute = RecomputeConfig(exchange=self.exchange, **self.recompute)
        config = TapConfig(schedule=schedule, recompute=recompute, orders=[0, 1], anchors=2)
        return replace(config, **self.changes)

    @property
    def arch(self):
        return Architecture(
            layers=LAYERS,
            heads=self.heads,
            head_dim=12,
            ffn_dim=32,
            in_channels=4,
            out_channels=4,
            text_dim=8,
            freq_dim=16,
        )


CASES = {f"{f}-{e}-{str(t)[6:]}": Case(f, e, t) for f, e in PAIRS for t in (torch.float32, torch.bfloat16)} | {
    "heads_that_ranks_do_not_divide": Case(heads=7),
    "two_branches_of_two_clips": Case(branches=("cond", "uncond"), batch=2),
    "contiguous": Case(layout="contiguous"),
    "some_ranks_recompute_nothing": Case(recompute={"budget": 0.006}),
    "no_token_is_stale": Case(recompute={"budget": 0.2, "threshold": 3.0}),
    "no_recompute": Case(recompute={}),
    "one_choice_for_all": Case(recompute={}, changes={"choice": "sample"}),
    "one_choice_for_all_and_recompute": Case(changes={"choice": "sample", "proxy": "l2"}),
    "one_predictor": Case(recompute={}, changes={"orders": [1], "lookback": 0.0}),
    "block_probe": Case(changes={"probe": "block_residual", "probe_depth": 1}),
    "fp8_in_one_layer": Case(recompute={"budget": 0.2, "kv_dtype": "fp8", "kv_layers": [1]}),
    "fp8_by_token_in_bf16": Case("auto", "allgather_q", torch.bfloat16, recompute={"budget": 0.1, "kv_dtype": "fp8"}),
    "a_timestep_for_every_token": Case(token_timesteps=True, batch=2),
    "guidance_halves": Case(cfg=2, dtype=torch.bfloat16, branches=("cond", "uncond")),
    "off": Case(recompute={}, changes={"enabled": False}),
}  # fmt: skip


def counting(case):
    """torch's counter, told of the CPU's fused attention too, where it tells something new: it is slow."""
    if case.dtype is not torch.float32:
        return nullcontext()
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={fused: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)})


@torch.no_grad()
def run(case):
    """What one rank's ledger, counter and state say."""
    parallel = ParallelConfig(cfg=case.cfg, attention=case.full, layout=case.layout)
    topology = build_topology(parallel, torch.device("cpu"))
    transformer = random_transformer(LAYERS, num_attention_heads=case.heads, attention_head_dim=12).to(case.dtype)
    tap = enable_tap(transformer, case.config, topology)
    generator = torch.Generator().manual_seed(3)
    frames, rows, columns = GRID
    latents, drift = torch.randn(2, case.batch, 4, frames, 2 * rows, 2 * columns, generator=generator)
    text = torch.randn(case.batch, TEXT, 8, generator=generator).to(case.dtype)
    flops = {}
    for step in range(STEPS):
        timestep = torch.full((case.batch, 175) if case.token_timesteps else (case.batch,), 900 - 50 * step)
        for i, branch in enumerate(case.branches):
            now = (latents + 0.1 * step * drift).to(case.dtype)
            with transformer.cache_context(branch, step_index=step, num_inference_steps=12), counting(case) as counter:
                transformer(now, timestep, (1 + i) * text, return_dict=False)
            if counter is not None:
                flops[step, branch] = counter.get_total_flops()
    stack = tap._stacks[0]
    return {
        "ledger": topology.ledger.tallies,
        "flops": flops,
        "sizes": stack.shard.layout.sizes,
        "sp_rank": topology.sp.rank,
        "attention": (stack.shard.attention.full, stack.shard.attention.exchange),
        "records": {(r.step, r.branch): (r.kind, r.labels, stale(r)) for r in tap.trace.records},
        "anchors": tap.trace.state_bytes,
        "kv": tap.trace.kv_bytes,
    }


def stale(record):
    """How many of its tokens this rank recomputed."""
    return int((record.choice[0] == record.labels.index(RECOMPUTED)).sum()) if RECOMPUTED in record.labels else 0


def run_all(names):
    return {name: run(CASES[name]) for name in names}


def names_for(ranks):
    return [
        name for name, case in CASES.items() if ranks % case.cfg == 0 and not (ranks == 1 and case.layout != "diagonal")
    ]


@pytest.fixture(scope="module", params=[1, 2, 3, 4])
def measured(request):
    """Every case on so many ranks, by case and rank; several a fork, which takes longer than a case."""
    names, measured = names_for(request.param), {}
    for some in (names[i : i + 8] for i in range(0, len(names), 8)):
        found = run_ranks(request.param, run_all, some) if request.param > 1 else [run_all(some)]
        measured |= {name: [rank[name] for rank in found] for name in some}
    return measured


def foretold(case, everyone, rank):
    """Branch formulas of a rank, and the recomputed rows by step and branch."""
    own = everyone[rank]
    group = [r for r in everyone if set(r["records"]) == set(own["records"])]  # the ranks of its guidance branch
    config, where = case.config, own["sp_rank"]
    layers = config.recompute.kv_layers
    rows = {key: Share(tuple(r["records"][key][2] for r in group), where) for key in own["records"]}
    method = Method(
        anchors=config.anchors,
        has_probe=len(config.orders) > 1,
        probe_depth=config.probe_depth if config.probe != "modulated" else 0,
        proxy=config.proxy,
        choice=config.choice,
        recomputes=config.recompute.budget > 0,
        kv_dtype=config.recompute.kv_dtype,
        kv_layers=len(layers) if layers else None,
    )
    full, exchange = own["attention"]
    branch = Branch(
        arch=case.arch, method=method, tokens=Share(own["sizes"], where), text=TEXT, dtype=case.dtype, full=full,
        exchange=exchange, token_timesteps=case.token_timesteps, batch=case.batch,
    )  # fmt: skip
    return branch, rows


def at(branch, record):
    """The formulas with this step's number of candidates."""
    labels = [label for label in record[1] if label != RECOMPUTED]
    return replace(branch, method=replace(branch.method, candidates=len(labels)))


def expected_ledger(case, branch, rows, records):
    total = {}
    for key, record in records.items():
        step, recomputed = key[0], rows[key]
        told = at(branch, record).messages(str(record[0]), recomputed)
        if case.cfg > 1:
            kind = "recompute" if recomputed.all else str(record[0])
            told[kind, "guidance"] = Tally(branch.guidance_bytes(), 1)
        for (kind, what), tally in told.items():
            before = total.setdefault((step, kind, what), Tally())
            before.bytes += tally.bytes
            before.calls += tally.calls
    return total


def test_ledger_is_as_foretold(measured):
    """Every byte and call of every rank, by step, kind of step and of message."""
    for name, everyone in measured.items():
        for rank, own in enumerate(everyone):
            branch, rows = foretold(CASES[name], everyone, rank)
            expected = expected_ledger(CASES[name], branch, rows, own["records"])
            assert own["ledger"] == expected, (name, rank)


def test_operations_are_as_foretold(measured):
    """As torch counts them, also of ranks that recompute nothing."""
    for name, everyone in measured.items():
        for rank, own in enumerate(everyone):
            branch, rows = foretold(CASES[name], everyone, rank)
            for key, flops in own["flops"].items():
                record = own["records"][key]
                assert flops == at(branch, record).flops(str(record[0]), rows[key]), (name, rank, key)


def test_memory_is_as_foretold(measured):
    for name, everyone in measured.items():
        if not CASES[name].config.enabled:
            continue
        for rank, own in enumerate(everyone):
            branch, _ = foretold(CASES[name], everyone, rank)
            assert set(own["anchors"].values()) == {branch.anchor_bytes()}, (name, rank)
            assert set(own["kv"].values()) == {branch.kept_kv_bytes()}, (name, rank)


def test_cases_have_what_they_are_named_for(measured):
    """Uneven tokens, uneven and empty shares of recomputed ones, and steps of all kinds."""
    for name, everyone in measured.items():
        assert all(bool(own["flops"]) == (CASES[name].dtype is torch.float32) for own in everyone)
        kinds = {kind for own in everyone for _, kind, _ in own["ledger"]}
        stale_tokens = {own["records"][key][2] for own in everyone for key in own["records"]}
        if len(everyone) > CASES[name].cfg:
            assert len(set(everyone[0]["sizes"])) == 2
            assert ("recompute" in kinds) == (max(stale_tokens) > 0)
        if name == "some_ranks_recompute_nothing" and len(everyone) > 1:
            forecasts = [[own["records"][2, "cond"][2] for own in everyone]]
            assert sum(forecasts[0]) == 1


def test_table_of_the_readme(capsys):
    """Every byte as foretold on two ranks, and the numbers that the README gives."""
    ledger.main(["--ranks", "2"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    cells = {(row[0].strip("| "), row[1]): row[-1].rstrip(" |") for row in rows}
    assert cells["full", "ulysses"] == "1,310,720 / 1,310,720 [1]"
    assert cells["forecast", "projected output"] == "40,960 / 40,960 [32]"
    assert cells["recompute 10%", "ulysses"] == "131,072 / 131,072 [0.1]"
    assert cells["recompute 25%", "allgather_q"] == "328,960 / 328,960 [0.251]"
    assert len(rows) == 14


def test_table_needs_ranks_that_divide_the_heads(capsys):
    with pytest.raises(SystemExit):
        ledger.main(["--ranks", "3"])
    assert "--ranks 3 is not possible; allowed: 2, 4, 8" in capsys.readouterr().err
