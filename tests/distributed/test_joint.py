"""Text and video that attend to each other, on several ranks: as one attention, as one rank, in the bytes foretold."""

from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest import mock

import cogvideox_random
import hunyuan_random
import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from torch.nn.functional import scaled_dot_product_attention

from tapvideo import ScheduleConfig, TapConfig, enable_tap
from tapvideo.config import RecomputeConfig
from tapvideo.parallel import attention
from tapvideo.parallel.arch import Architecture
from tapvideo.parallel.attention import Joint, SequenceAttention
from tapvideo.parallel.comm import Comm
from tapvideo.parallel.config import ParallelConfig
from tapvideo.parallel.cost import Branch, Method, Share
from tapvideo.parallel.kept import KeepOptions, KeptKV
from tapvideo.parallel.ledger import Tally
from tapvideo.parallel.shard import TokenShard
from tapvideo.parallel.topology import build_topology
from tapvideo.stack import RECOMPUTED

GRID, TEXT, HEADS = (2, 3, 5), 4, 6
TOKENS = 30
MODES = [
    ("ulysses", "ulysses"),
    ("ulysses", "allgather_q"),
    ("allgather_kv", "ulysses"),
    ("allgather_kv", "allgather_q"),
    ("allgather_kv", "allgather_kv"),
]
CPU = torch.device("cpu")


def kernel(query, key, value, mask=None):
    by_head = (x.transpose(1, 2) for x in (query, key, value))
    return scaled_dot_product_attention(*by_head, attn_mask=mask).transpose(1, 2)


def sharp(rows, seed):
    """Queries, keys and values whose attention rests on a few keys."""
    query, key, value = torch.randn(3, 2, rows, HEADS, 8, generator=torch.Generator().manual_seed(seed))
    return torch.stack([3 * query, 3 * key, value])


def layers(full, exchange, is_first=False, stale=(0, 1, 7, 8, 9, 20, 29)):
    """The largest error of a full pass and of one on some rows, beside attention over everything at once."""
    joined = Joint(TEXT, is_first, torch.tensor([[True, True, False, False], [True, True, True, False]]))
    mask = torch.cat([torch.ones(2, TOKENS, dtype=torch.bool), joined.mask], 1)
    comm = Comm(dist.group.WORLD if dist.is_initialized() else None)
    sequence = SequenceAttention(comm, full=full, exchange=exchange)
    shard, kept, errors = TokenShard(sequence, layout="diagonal"), KeptKV(KeepOptions()), []
    shard.enter(GRID, CPU)
    every, updated = torch.arange(TOKENS), torch.tensor(stale)
    video = sharp(TOKENS, 1)
    for changed, rows in ((every, shard.all_rows()), (updated, shard.some_rows(updated))):
        video, text = video.clone(), sharp(TEXT, 3 + len(errors))
        video[:, :, changed] = sharp(TOKENS, 5 + len(errors))[:, :, changed]
        own = shard.positions if rows.own is None else shard.positions[rows.own]
        sequence.begin(rows, kept)
        mine = [joined.join(v[:, own], t) for v, t in zip(video, text, strict=True)]
        found = joined.split(sequence(0, *mine, kernel, joined))
        whole = [torch.cat(pair, 1) for pair in zip(video, text, strict=True)]
        expected = kernel(*whole, mask[:, None, None]).split([TOKENS, TEXT], 1)
        errors.append(max((found[0] - expected[0][:, own]).abs().amax().item() if len(own) else 0.0,
                          (found[1] - expected[1]).abs().amax().item()))  # fmt: skip
    return errors


@pytest.mark.parametrize("is_first", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_mode_is_attention_to_everything_once(ranks, is_first):
    for full, exchange in MODES:
        everyone = run_ranks(ranks, layers, full, exchange, is_first) if ranks > 1 else [layers("ulysses", "ulysses")]
        assert max(max(errors) for errors in everyone) <= 1e-5, (full, exchange)


@pytest.mark.parametrize("mode", [MODES[0], MODES[1], MODES[4]])
def test_ranks_without_a_row_serve_the_others(mode):
    assert max(max(errors) for errors in run_ranks(3, layers, *mode, False, (11,))) <= 1e-5


def test_more_ranks_than_text_tokens():
    assert max(max(errors) for errors in run_ranks(TEXT + 1, layers, "allgather_kv", "allgather_q")) <= 1e-5


@contextmanager
def text_counted_by_every_rank():
    """The part of the text's keys comes twice."""
    merge = attention.merge_parts

    def twice(*parts):
        return merge(*(torch.cat([part, part[-1:]]) for part in parts))

    with mock.patch.object(attention, "merge_parts", twice):
        yield


@contextmanager
def mask_dropped():
    with mock.patch.object(Joint, "key_mask", return_value=None):
        yield


@contextmanager
def mask_misplaced():
    """As if text came first."""
    of_keys = Joint.key_mask
    with mock.patch.object(Joint, "key_mask", lambda joint, keys: of_keys(replace(joint, is_first=True), keys)):
        yield


@contextmanager
def heads_of_another_rank():
    other = lambda own, rows: rows.tensor_split(own.comm.size, 2)[own.comm.rank - 1]  # noqa: E731
    with mock.patch.object(SequenceAttention, "_own_heads", other):
        yield


@contextmanager
def text_merged_by_one_rank_only():
    """Others' shares of the text's outputs are not asked for."""

    def same(own, rows, joint, shares):
        text = replace(joint, tokens=shares[own.comm.rank]).split(rows)[1]
        return joint.join(rows[:, : rows.shape[1] - text.shape[1]], text.repeat(1, own.comm.size, 1, 1))

    with mock.patch.object(SequenceAttention, "_tell_text", same):
        yield


def mutated(mutation, *arguments):
    with mutation():
        return layers(*arguments)


@pytest.mark.parametrize(
    ("mutation", "mode"),
    [
        (text_counted_by_every_rank, MODES[1]),
        (mask_dropped, MODES[0]),
        (mask_dropped, MODES[4]),
        (mask_misplaced, MODES[0]),
        (heads_of_another_rank, MODES[0]),
        (text_merged_by_one_rank_only, MODES[3]),
    ],
)
def test_mutation_is_seen(mutation, mode):
    assert max(max(errors) for errors in run_ranks(2, mutated, mutation, *mode)) >= 1e-2


# -- whole models


@dataclass(frozen=True)
class Case:
    """A model on several ranks."""

    ranks: int
    full: str
    exchange: str
    model: str = "hunyuan"
    variant: str = "t2v"
    batch: int = 2
    dtype: torch.dtype = torch.float32
    recompute: float = 0.25
    steps: int = 7

    @property
    def models(self):
        return {"hunyuan": hunyuan_random, "cogvideox": cogvideox_random}[self.model]

    @property
    def config(self):
        schedule = ScheduleConfig(kind="explicit", steps=[0, 1, 4], warmup=1, min_steps=0)
        recompute = RecomputeConfig(budget=self.recompute, exchange=self.exchange)
        return TapConfig(schedule=schedule, recompute=recompute, anchors=2, orders=[0, 1])


CASES = [
    Case(2, "ulysses", "ulysses"),
    Case(3, "ulysses", "allgather_q"),
    Case(2, "allgather_kv", "ulysses", variant="i2v-tokens"),
    Case(3, "allgather_kv", "allgather_q", variant="i2v-tokens", batch=1),
    Case(2, "allgather_kv", "allgather_kv", variant="i2v-latents", batch=1),
    Case(3, "ulysses", "ulysses", "cogvideox", "5b", batch=1),
    Case(2, "ulysses", "allgather_q", "cogvideox", "2b"),
    Case(3, "allgather_kv", "allgather_kv", "cogvideox", "1.5-i2v", batch=1),
    Case(4, "auto", "auto", "cogvideox", "5b-i2v", batch=1),  # which does not divide 6 heads
]
IDS = [f"{c.model}-{c.variant}-{c.ranks}-{c.full}-{c.exchange}" for c in CASES]


def run(case):
    """Latents, choices, and what this rank's ledger and state say."""
    topology = build_topology(ParallelConfig(attention=case.full), CPU)
    transformer = case.models.random_transformer(case.variant).to(case.dtype)
    tap = enable_tap(transformer, case.config, topology)
    latents = case.models.denoise(transformer, steps=case.steps, batch=case.batch)
    stack, records = tap._stacks[0], tap.trace.records
    told = {
        "ledger": dict(topology.ledger.tallies),
        "sizes": stack.shard.layout.sizes,
        "modes": (stack.shard.attention.full, stack.shard.attention.exchange),
        "steps": [(r.step, str(r.kind), stale(r)) for r in records],
        "kept": (tap.trace.state_bytes, tap.trace.kv_bytes),
    }
    tap.gather_trace()
    return latents, {r.step: r.choice for r in records if r.choice is not None}, told


def stale(record):
    """How many of its tokens this rank recomputed."""
    return int((record.choice[0] == record.labels.index(RECOMPUTED)).sum()) if RECOMPUTED in record.labels else 0


def alone(case):
    return replace(case, full="auto", exchange="auto")


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_ranks_make_what_one_makes_with_as_many_bytes_as_foretold(case):
    latents, choices, _ = run(alone(case))
    found = run_ranks(case.ranks, run, case)
    for others, other_choices, _ in found:
        assert (others - latents).abs().max() <= 1e-5
        assert torch.equal(others, found[0][0])
        assert all(torch.equal(other_choices[step], choices[step]) for step in choices)
    as_foretold(case, [told for _, _, told in found])


def as_foretold(case, everyone):
    for rank, own in enumerate(everyone):
        branch = branch_of(case, own, rank)
        expected, kinds = {}, set()
        for i, (step, kind, _) in enumerate(own["steps"]):
            rows = Share(tuple(told["steps"][i][2] for told in everyone), rank)
            messages = branch.messages(kind, rows)
            kinds |= {kind for kind, _ in messages}
            expected |= {(step, kind, what): Tally(t.bytes, t.calls) for (kind, what), t in messages.items()}
        assert own["ledger"] == expected
        assert kinds == {"full", "forecast", "recompute"}
        anchors, kv = own["kept"]
        assert set(anchors.values()) == {branch.anchor_bytes()}
        assert set(kv.values()) == {branch.kept_kv_bytes()}


def branch_of(case, own, rank):
    is_hunyuan = case.model == "hunyuan"
    patch_t = 2 if case.variant.startswith("1.5") else 1
    arch = Architecture(
        layers=4 if is_hunyuan else 3, heads=HEADS, head_dim=16, ffn_dim=1, in_channels=4, out_channels=4,
        patch_size=[patch_t, 2, 2],
    )  # fmt: skip
    full, exchange = own["modes"]
    return Branch(
        arch=arch, method=Method(anchors=2, candidates=2, recomputes=True), tokens=Share(own["sizes"], rank),
        text=0, joint_text=7, dtype=case.dtype, full=full, exchange=exchange,
        batch=case.batch if is_hunyuan else 2 * case.batch,
    )  # fmt: skip


@pytest.mark.parametrize("index", [0, 1, 3, 6])
def test_half_precision_costs_what_is_foretold(index):
    """Log-sums stay in fp32."""
    case = replace(CASES[index], dtype=torch.bfloat16)
    latents, _, _ = run(alone(case))
    found = run_ranks(case.ranks, run, case)
    assert all((others - latents).abs().max() <= 0.1 for others, _, _ in found)
    as_foretold(case, [told for _, _, told in found])


@pytest.mark.parametrize("index", [1, 2, 5, 7])
def test_recomputing_all_tokens_is_a_full_step(index):
    case = replace(CASES[index], recompute=1.0)
    full = case.models.denoise(case.models.random_transformer(case.variant), steps=case.steps, batch=case.batch)
    assert max((latents - full).abs().max() for latents, _, _ in run_ranks(case.ranks, run, case)) <= 1e-5


def with_other_padding(case):
    """Latents where what prompts are padded with is something else; the text itself is as before."""
    inputs = hunyuan_random.inputs

    def changed(*args, **kwargs):
        arguments = inputs(*args, **kwargs)
        padding = ~arguments["encoder_attention_mask"].bool()
        arguments["encoder_hidden_states"][padding] += 100.0
        return arguments

    with mock.patch.object(hunyuan_random, "inputs", changed):
        return run(case)[0]


@pytest.mark.parametrize("case", CASES[:2], ids=IDS[:2])
def test_padding_is_seen_by_nobody(case):
    latents, _, _ = run(alone(case))
    for others in run_ranks(case.ranks, with_other_padding, case):
        assert (others - latents).abs().max() <= 1e-5
