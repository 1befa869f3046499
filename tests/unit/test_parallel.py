"""The parts of sequence parallel that need no second rank: meshes, what goes together, ledgers, agreement."""

from dataclasses import replace

import pytest
import torch

from tapvideo.checks import ConfigError
from tapvideo.memory import check_shards
from tapvideo.parallel.attention import resolve
from tapvideo.parallel.comm import Comm, PeerLost
from tapvideo.parallel.config import ParallelConfig
from tapvideo.parallel.guidance import GuidanceExchange
from tapvideo.parallel.ledger import Ledger
from tapvideo.parallel.topology import alone, build_topology, mesh_sizes


@pytest.mark.parametrize(
    ("changes", "world", "sizes"),
    [
        ({}, 1, (1, 1, 1)),
        ({}, 6, (1, 1, 6)),
        ({"cfg": 2}, 8, (1, 2, 4)),
        ({"dp": 2, "cfg": 2, "sp": 2}, 8, (2, 2, 2)),
        ({"dp": 4}, 4, (4, 1, 1)),
    ],
)
def test_mesh_takes_every_rank(changes, world, sizes):
    assert mesh_sizes(ParallelConfig(**changes), world) == sizes


@pytest.mark.parametrize(
    ("changes", "world", "message"),
    [
        ({"sp": 3}, 8, r"parallel.sp=3 makes 3 ranks, and there are 8; allowed: .* 1, 2, 4, 8"),
        ({"cfg": 2}, 3, r"parallel.dp=1 x parallel.cfg=2 does not divide 3 ranks; allowed products: 1, 3"),
        ({"cfg": 2}, 1, r"does not divide 1 ranks"),
        ({"dp": 2, "sp": 1}, 1, r"makes 2 ranks, and there are 1"),
    ],
)
def test_meshes_that_do_not_fit_say_what_would(changes, world, message):
    with pytest.raises(ConfigError, match=message):
        mesh_sizes(ParallelConfig(**changes), world)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"cfg": 3}, "parallel.cfg=3"),
        ({"dp": 0}, "parallel.dp=0"),
        ({"sp": 0}, "parallel.sp=0"),
        ({"layout": "random"}, "parallel.layout='random'"),
        ({"attention": "flash"}, "parallel.attention='flash'"),
        ({"groups": "mpi"}, "parallel.groups='mpi'"),
        ({"vae": "none"}, "parallel.vae='none'"),
        ({"timeout": 0}, "parallel.timeout=0"),
    ],
)
def test_bad_values_are_named(changes, named):
    with pytest.raises(ConfigError, match=named):
        ParallelConfig(**changes)


@pytest.mark.parametrize(
    ("asked", "heads", "ranks", "found"),
    [
        (("auto", "auto"), 12, 4, ("ulysses", "ulysses")),
        (("auto", "auto"), 12, 8, ("allgather_kv", "allgather_q")),
        (("auto", "auto"), 12, 1, ("ulysses", "ulysses")),
        (("auto", "allgather_q"), 12, 4, ("ulysses", "allgather_q")),
        (("auto", "allgather_kv"), 12, 4, ("allgather_kv", "allgather_kv")),
        (("allgather_kv", "auto"), 12, 4, ("allgather_kv", "ulysses")),
    ],
)
def test_auto_takes_the_fewest_bytes_that_heads_allow(asked, heads, ranks, found):
    assert resolve(full=asked[0], exchange=asked[1], heads=heads, ranks=ranks) == found


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("ulysses", "auto"), r"parallel.attention=ulysses .* 8 ranks do not divide 12; allowed: 1, 2, 3, 4, 6, 12"),
        (("auto", "ulysses"), r"tap.recompute.exchange=ulysses .* 8 ranks do not divide 12"),
    ],
)
def test_ulysses_needs_ranks_that_divide_the_heads(asked, message):
    with pytest.raises(ValueError, match=message):
        resolve(full=asked[0], exchange=asked[1], heads=12, ranks=8)


def test_ulysses_has_no_replicated_keys_and_values_to_keep():
    with pytest.raises(ValueError, match=r"exchange=allgather_kv .* allowed with it: ulysses, allgather_q"):
        resolve(full="ulysses", exchange="allgather_kv", heads=12, ranks=4)


def test_one_rank_says_nothing():
    comm, rows = Comm(), torch.randn(5, 3)
    assert comm.all_to_all(rows, send=[5], receive=[5], what="x") is rows
    assert comm.all_gather(rows, [5], what="x") is rows
    assert comm.mean(rows, 5, what="x") is rows
    assert comm.exchange_objects("x") == ["x"]
    comm.barrier()
    assert comm.ledger.tallies == {}


def test_ledger_sums_by_step_kind_and_message():
    ledger = Ledger()
    for step, kind, what, received in [
        (0, "full", "attention", 8),
        (0, "full", "output", 2),
        (1, "forecast", "output", 2),
    ]:
        ledger.turn(step, kind)
        ledger.count(what, received)
        ledger.count(what, received)
    assert (ledger.total().bytes, ledger.total().calls) == (24, 6)
    assert ledger.total(what="output").bytes == 8
    assert ledger.total(kind="full", step=0, what="attention").calls == 2
    assert {kind: {what: t.bytes for what, t in found.items()} for kind, found in ledger.by_kind().items()} == {
        "full": {"attention": 16, "output": 4},
        "forecast": {"output": 4},
    }
    ledger.clear()
    assert ledger.total().calls == 0


def test_without_other_ranks_the_topology_is_one():
    topology = build_topology(ParallelConfig(), torch.device("cpu"))
    assert str(topology) == str(alone()) == "dp 1 x cfg 1 x sp 1"
    assert topology.is_writer
    assert topology.is_alone


class TwoHalves(Comm):
    """The first of two ranks on the cfg axis; the other would answer with twice the values."""

    def __init__(self):
        super().__init__()
        self.size = 2

    def all_gather(self, rows, counts, *, what):
        return torch.cat([rows, 2 * rows])


def test_the_other_half_is_filled_in_before_branches_are_combined():
    exchange, like = GuidanceExchange(TwoHalves()), torch.empty(2, 3)
    (cond,) = exchange("cond", 1, 0, like.clone(), lambda: (torch.ones(2, 3),))
    (uncond,) = exchange("uncond", 1, 0, like.clone(), lambda: pytest.fail("the other half runs this branch"))
    assert torch.equal(cond, torch.ones(2, 3))
    assert torch.equal(uncond, 2 * torch.ones(2, 3))


def test_a_branch_that_stays_alone_is_an_error_and_not_a_wrong_video():
    exchange, like = GuidanceExchange(TwoHalves()), torch.empty(2)
    exchange("cond", 1, 0, like, lambda: (torch.ones(2),))
    with pytest.raises(ValueError, match=r"the branch 'cond' alone, without guidance; allowed: guidance above 1"):
        exchange("cond", 1, 1, like, lambda: (torch.ones(2),))


def test_an_aborted_run_leaves_nothing_to_the_next():
    exchange, like = GuidanceExchange(TwoHalves()), torch.empty(2)
    exchange("cond", 1, 3, like.clone(), lambda: (torch.ones(2),))
    exchange("cond", 2, 0, like.clone(), lambda: (3 * torch.ones(2),))
    (uncond,) = exchange("uncond", 2, 0, like.clone(), lambda: None)
    assert torch.equal(uncond, 6 * torch.ones(2))


@pytest.mark.parametrize("branch", [None, "cond_uncond", "pred"])
def test_unknown_branches_cannot_be_split(branch):
    with pytest.raises(ValueError, match=r"parallel.cfg=2 needs a pipeline that names its guidance branches"):
        GuidanceExchange(TwoHalves())(branch, 1, 0, torch.empty(2), lambda: None)


def test_more_ranks_than_tokens_are_refused():
    many = replace(alone(), sp=TwoHalves())
    check_shards(2, many)
    with pytest.raises(ConfigError, match=r"parallel.sp=2 ranks cannot share 1 tokens; allowed: 1 to 1"):
        check_shards(1, many)


def test_usp_needs_even_shards():
    config = ParallelConfig(attention="usp", groups="xfuser")
    check_shards(4, replace(alone(), sp=TwoHalves(), config=config))
    with pytest.raises(ConfigError, match=r"parallel.attention='usp' .* 2 ranks do not divide 5"):
        check_shards(5, replace(alone(), sp=TwoHalves(), config=config))


@pytest.mark.parametrize("exchange", ["ulysses", "allgather_kv"])
def test_usp_goes_with_queries_that_travel(exchange):
    assert resolve(full="usp", exchange="auto", heads=12, ranks=4) == ("usp", "allgather_q")
    with pytest.raises(ValueError, match=r"allowed with it: allgather_q"):
        resolve(full="usp", exchange=exchange, heads=12, ranks=4)


def fails_with(error):
    def collective(*args, group):
        raise error

    return collective


def test_only_what_is_about_a_peer_is_a_lost_peer():
    gloo = RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer")
    with pytest.raises(PeerLost, match="Connection closed by peer"):
        Comm()._do(fails_with(gloo))
    with pytest.raises(RuntimeError, match="out of memory") as caught:
        Comm()._do(fails_with(torch.OutOfMemoryError("CUDA out of memory")))
    assert not isinstance(caught.value, PeerLost)
