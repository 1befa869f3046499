"""xfuser's groups and attention, on CPUs, in a process of their own.

xfuser refuses to be imported without a GPU, so this takes the way of its own tests: gloo, and a `set_device` that does
nothing; on torch's CPU wheel also a version of CUDA that is not there. What that can and cannot say is in `NOT_SEEN`.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch.distributed as dist
from ranks import run_ranks

from tapvideo.checks import ConfigError
from tapvideo.parallel.config import ParallelConfig
from tapvideo.parallel.xfuser_groups import AXES, xfuser_groups

NOT_SEEN = (
    "seen: who is in which group, and USP's exchanges over gloo with torch's CPU attention; not seen: NCCL, device "
    "placement, the attention kernels that xfuser takes on GPUs, speed; pretended: torch.version.cuda, set_device, "
    "HAS_LONG_CTX_ATTN, yunchang's process groups in USP, and the CPU's flash attention for cuDNN's"
)
MESHES = [(1, 2, 2), (2, 1, 2), (1, 1, 2)]
SPLITS = [(2, 1), (1, 2), (2, 2)]  # ranks that trade heads, ranks on a ring
SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture(scope="module")
def found():
    if importlib.util.find_spec("xfuser") is None:
        pytest.skip("xfuser is not installed; the extra `xfuser` has it (it needs triton, and a GPU for real use)")
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(SUPPORT), os.environ.get("PYTHONPATH")])),
    }
    ran = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-4000:]
    print(NOT_SEEN)
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_groups_are_those_of_the_device_mesh(found, sizes):
    for ours, mesh in found["groups"][str(sizes)]:
        assert ours == mesh


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_usp_is_attention_to_all_tokens(found, split):
    for error, alone, received in found["usp"][str(split)]:
        assert error <= 1e-5
        assert alone > 1e-2  # attention to a rank's own tokens alone would be that far off
        assert received == formula(*split)


@pytest.mark.slow
def test_uneven_shards_are_refused(found):
    assert found["uneven"] == (
        "parallel.attention=usp needs as many tokens on every rank, and 2 ranks do not divide 5 tokens; allowed: sizes "
        "that they divide, or ulysses, allgather_kv"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "usp"}, "parallel.attention='usp' is xfuser's; parallel.groups='mesh', allowed: xfuser"),
        ({"groups": "xfuser", "ring": 2}, "parallel.ring=2 is of usp alone; parallel.attention='auto' allows: 1"),
        ({"groups": "xfuser", "attention": "usp", "ring": 0}, "parallel.ring=0 is too small; allowed: 1 or more"),
    ],
)
def test_config_says_what_goes_together(changes, message):
    with pytest.raises(ConfigError) as caught:
        ParallelConfig(**changes)
    assert str(caught.value) == message


def test_ring_must_divide_the_ranks():
    with pytest.raises(ConfigError, match=r"parallel.ring=4 does not divide parallel.sp=6; allowed: 1, 2, 3, 6"):
        xfuser_groups((1, 1, 6), ring=4)


def test_xfuser_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "xfuser", None)
    with pytest.raises(ConfigError) as caught:
        xfuser_groups((1, 1, 2))
    assert str(caught.value) == (
        "parallel.groups='xfuser' is not possible here: it is not installed; pip install 'tapvideo[xfuser]'; "
        "allowed: mesh"
    )


def test_xfuser_that_finds_no_gpu(monkeypatch, tmp_path):
    """As 0.7.0 fails on torch's CPU wheel."""
    (tmp_path / "xfuser").mkdir()
    (tmp_path / "xfuser" / "__init__.py").write_text("raise NotImplementedError('No Accelerators available')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "xfuser"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ConfigError) as caught:
        xfuser_groups((1, 1, 2))
    assert str(caught.value) == (
        "parallel.groups='xfuser' is not possible here: it needs an NVIDIA GPU to be imported: "
        "NotImplementedError: No Accelerators available; allowed: mesh"
    )


def in_order(order):
    """What `xfuser_groups` says of an xfuser whose sp ranks come in this order; cfg and sp have two ranks each."""
    groups = {axis: dist.new_subgroups_by_enumeration(ranks)[0] for axis, ranks in order.items()}
    state = ModuleType("parallel_state")
    state.model_parallel_is_initialized = lambda: True
    for axis, group in groups.items():
        setattr(state, f"get_{axis}_group", lambda group=group: SimpleNamespace(device_group=group))
    for name in ("xfuser", "xfuser.core", "xfuser.core.distributed", "xfuser.core.distributed.parallel_state"):
        sys.modules[name] = state  # of this forked process
    try:
        return {axis: dist.get_process_group_ranks(group) for axis, group in xfuser_groups((1, 2, 2)).items()}
    except ConfigError as error:
        return str(error)


def test_another_order_of_ranks_is_an_error():
    alone = [[0], [1], [2], [3]]
    rows, columns = [[0, 1], [2, 3]], [[0, 2], [1, 3]]
    found = run_ranks(4, in_order, {"dp": alone, "cfg": columns, "sp": rows})
    assert found[3] == {"dp": [3], "cfg": [1, 3], "sp": [2, 3]}
    swapped = run_ranks(4, in_order, {"dp": alone, "cfg": rows, "sp": columns})
    assert swapped[1] == (
        "parallel.groups='xfuser' is not possible here: its cfg group of rank 1 is [0, 1], and [1, 3] is needed; "
        "allowed: mesh"
    )


TOKENS, HEADS, DIM = 12, 4, 8


def formula(ulysses, ring):
    """Bytes of fp32 that a rank receives."""
    ranks = ulysses * ring
    return 4 * TOKENS * HEADS * DIM * (4 * (ulysses - 1) / (ulysses * ranks) + 2 * (ring - 1) / ranks)


# From here on in the process of its own.


def pretend():
    import torch

    if torch.version.cuda is None:
        torch.version.cuda = "13.0"
    import yunchang.globals
    from xfuser.config import config
    from xfuser.core.distributed import attention_backend, group_coordinator, parallel_state
    from xfuser.model_executor.layers import usp

    parallel_state.set_device = lambda _: None
    for module in (config, parallel_state, group_coordinator):
        module.HAS_LONG_CTX_ATTN = True
    usp.PROCESS_GROUP = yunchang.globals.PROCESS_GROUP

    def cpu_flash(query, key, value, dropout_p, is_causal, attention_kwargs=None):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, dropout_p, is_causal)

    torch.backends.cudnn.is_available = lambda: True  # the one of xfuser's kernels that is always there on a GPU
    attention_backend.ATTENTION_FUNCTION_REGISTRY[attention_backend.AttentionBackendType.CUDNN] = cpu_flash


def members(sizes):
    from torch.distributed.device_mesh import init_device_mesh

    groups = xfuser_groups(sizes)
    mesh = init_device_mesh("cpu", sizes, mesh_dim_names=AXES)
    named = [groups, {axis: mesh.get_group(axis) for axis in AXES}]
    again = xfuser_groups(sizes)
    assert all(again[axis] is groups[axis] for axis in AXES)
    return [{axis: dist.get_process_group_ranks(group) for axis, group in one.items()} for one in named]


def attend(ulysses, ring):
    """Largest error of USP, and of attention to this rank's tokens alone, and the bytes counted."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from tapvideo.parallel.comm import Comm
    from tapvideo.parallel.usp import UspAttention

    comm = Comm(xfuser_groups((1, 1, ulysses * ring), ring=ring)["sp"])
    usp = UspAttention(comm, heads=HEADS, ring=ring)
    torch.manual_seed(0)
    everything = torch.randn(3, 2, HEADS, TOKENS, DIM) * 3
    expected = scaled_dot_product_attention(*everything).transpose(1, 2)
    own = slice(comm.rank * TOKENS // comm.size, (comm.rank + 1) * TOKENS // comm.size)
    mine = everything[..., own, :].transpose(2, 3)
    with torch.no_grad():
        out = usp(*mine, [TOKENS // comm.size] * comm.size)
    alone = scaled_dot_product_attention(*everything[..., own, :]).transpose(1, 2)
    distances = [(x - expected[:, own]).abs().max().item() for x in (out, alone)]
    return [*distances, comm.ledger.total(what="attention").bytes / 2]  # of one sample


def refuse():
    import torch

    from tapvideo.parallel.comm import Comm
    from tapvideo.parallel.usp import UspAttention

    usp = UspAttention(Comm(xfuser_groups((1, 1, 2))["sp"]), heads=HEADS)
    try:
        usp(*torch.zeros(3, 1, 3, HEADS, DIM), [3, 2])
    except ValueError as error:
        return str(error)


def main():
    pretend()
    found = {
        "groups": {str(sizes): run_ranks(sizes[0] * sizes[1] * sizes[2], members, sizes) for sizes in MESHES},
        "usp": {str(split): run_ranks(split[0] * split[1], attend, *split) for split in SPLITS},
        "uneven": run_ranks(2, refuse)[0],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
