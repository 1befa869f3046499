"""Plans without weights: sizes, operations and bytes against other ways to come by them, and what the command says."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from hydra import compose, initialize_config_dir
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from tapvideo.config import TapConfig, config_dir
from tapvideo.parallel import plan
from tapvideo.parallel.arch import Architecture
from tapvideo.parallel.cost import Branch, Method, Share
from tapvideo.parallel.estimate import Machine, Mesh, estimate, method_of
from tapvideo.parallel.ledger import Tally
from tapvideo.parallel.plan_tables import as_json, as_markdown
from tapvideo.schedule import StepKind, full_plan, interval_plan

GIB = 2**30


def planned(*arguments):
    return plan.make(plan.read(list(arguments)))


def arch_of(name):
    return plan.read([f"model={name}"]).arch


def on_meta(arch):
    """The transformer of these sizes, without memory for weights."""
    with torch.device("meta"):
        return WanTransformer3DModel(
            patch_size=tuple(arch.patch_size), num_attention_heads=arch.heads, attention_head_dim=arch.head_dim,
            in_channels=arch.in_channels, out_channels=arch.out_channels, text_dim=arch.text_dim,
            freq_dim=arch.freq_dim, ffn_dim=arch.ffn_dim, num_layers=arch.layers,
        )  # fmt: skip


# -- sizes


def test_sizes_of_the_model_that_ships_are_those_of_its_files():
    arch = arch_of("wan_tiny")
    assets = Path(plan.__file__).parents[1] / "assets" / "wan_tiny"
    dit, vae = (json.loads((assets / part / "config.json").read_text()) for part in ("transformer", "vae"))
    names = {"layers": "num_layers", "heads": "num_attention_heads", "head_dim": "attention_head_dim"}
    same = ("ffn_dim", "patch_size", "in_channels", "out_channels", "text_dim", "freq_dim")
    assert all(getattr(arch, ours) == dit[theirs] for ours, theirs in names.items())
    assert all(getattr(arch, name) == dit[name] for name in same)
    assert arch.vae_stride == [vae["scale_factor_temporal"], *[vae["scale_factor_spatial"]] * 2]
    for part, count in (
        ("text_encoder/model", arch.text_encoder_params),
        ("vae/diffusion_pytorch_model", arch.vae_params),
    ):
        assert numbers_in(assets / f"{part}.safetensors") == count


def numbers_in(file):
    from safetensors import safe_open

    with safe_open(str(file), "pt") as stored:
        return sum(stored.get_tensor(name).numel() for name in stored.keys())


def test_sizes_of_wan_are_those_of_its_model_cards():
    for name, numbers in {"wan": (30, 12, 128, 8960), "wan_14b": (40, 40, 128, 13824)}.items():
        arch = arch_of(name)
        assert (arch.layers, arch.heads, arch.head_dim, arch.ffn_dim) == numbers
        assert (arch.patch_size, arch.vae_stride, arch.text_dim, arch.out_numbers) == ([1, 2, 2], [4, 8, 8], 4096, 64)


@pytest.mark.parametrize("name", ["wan", "wan_14b", "wan_tiny"])
def test_parameters_are_those_of_the_model(name):
    """All of them, and those that diffusers keeps in fp32, by its own list."""
    arch = arch_of(name)
    model = on_meta(arch)
    exact = model._keep_in_fp32_modules
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    kept = sum(size for name, size in sizes.items() if any(part in name.split(".") for part in exact))
    assert arch.parameters() == (sum(sizes.values()), kept)


def test_tokens_of_wan():
    arch = Architecture()
    assert arch.token_grid(height=720, width=1280, num_frames=81) == (21, 45, 80)
    assert arch.token_grid(height=480, width=832, num_frames=81) == (21, 30, 52)
    assert arch_of("wan_tiny").token_grid(height=64, width=64, num_frames=17) == (5, 8, 8)


# -- operations


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 2])
def test_operations_of_a_full_step_are_what_torch_counts(wan, batch):
    arch = Architecture(
        layers=3, heads=2, head_dim=16, ffn_dim=32, in_channels=4, out_channels=4, text_dim=8, freq_dim=16
    )
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(display=False, custom_mapping={fused: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)})
    with counter:
        wan.random_transformer()(torch.randn(batch, 4, 3, 10, 14), torch.full((batch,), 900), torch.randn(batch, 6, 8))
    branch = Branch(arch=arch, method=Method(), tokens=Share((3 * 5 * 7,)), text=6, dtype=torch.float32, batch=batch)
    assert counter.get_total_flops() == branch.flops("full")


def test_operations_of_wan_14b_in_closed_form():
    """12 T d^2 + 4 T d f + 4 T T d + 4 T S d + 4 S d^2 a layer, and what is outside the blocks."""
    tokens, d, f, text = 75600, 5120, 13824, 512
    layer = (
        12 * tokens * d * d + 4 * tokens * d * f + 4 * tokens * tokens * d + 4 * tokens * text * d + 4 * text * d * d
    )
    outside = 2 * d * (tokens * 64 * 2 + 256 + d + 6 * d + text * (4096 + d))
    assert branch_of(1).flops("full") == 40 * layer + outside


def test_ranks_share_the_work_of_the_blocks():
    """Attention and token-wise work are divided; embeddings and the text's projections are not."""
    one, eight = branch_of(1), branch_of(8)
    everywhere = one.arch.embedding_flops(75600, 512) + 40 * 4 * 512 * 5120 * 5120
    assert one.flops("full") - everywhere == 8 * (eight.flops("full") - everywhere)


def test_exchanges_compute_alike_when_all_is_even():
    rows = Share.even(7568, 8)
    found = {e: branch_of(8, exchange=e, recomputes=True).flops("forecast", rows) for e in ("ulysses", "allgather_q")}
    assert found["ulysses"] == found["allgather_q"]


# -- bytes


def branch_of(ranks, *, tokens=75600, full="ulysses", exchange="ulysses", dtype=torch.bfloat16, **method):
    return Branch(
        arch=Architecture(), method=Method(**method), tokens=Share.even(tokens, ranks), text=512, dtype=dtype,
        full=full, exchange=exchange,
    )  # fmt: skip


@pytest.mark.parametrize("ranks", [2, 4, 5, 8])
def test_messages_of_even_shares_in_closed_form(ranks):
    """The table of `attention.py`, in T d numbers of bf16."""
    unit = 75600 * 5120 * 2
    stale = 7600 // (ranks * ranks) * ranks * ranks
    rows, f, rest = Share.even(stale, ranks), stale / 75600, (ranks - 1) / ranks
    whole = {"ulysses": 4 * rest / ranks, "allgather_kv": 2 * rest}
    part = {"ulysses": 4 * f * rest / ranks, "allgather_kv": 2 * f * rest, "allgather_q": f * rest * (2 + 2 / 128)}
    for full, numbers in whole.items():
        assert branch_of(ranks, full=full).layer_messages("full").bytes == pytest.approx(numbers * unit, rel=1e-12)
    for exchange, numbers in part.items():
        told = branch_of(ranks, exchange=exchange).layer_messages("recompute", rows)
        assert told.bytes == pytest.approx(numbers * unit, rel=1e-12)


def test_a_forecast_step_sends_at_most_64_numbers_a_token():
    for ranks in (2, 4, 8, 64):
        told = branch_of(ranks, full="allgather_kv", exchange="allgather_q").messages("forecast")
        assert told.keys() == {("forecast", "output")}
        assert told["forecast", "output"].bytes <= 64 * 75600 * 2


def test_one_rank_is_told_nothing():
    branch = branch_of(1, recomputes=True, choice="sample")
    assert branch.messages("full") == branch.messages("forecast", Share((99,))) == {}
    assert branch.layer_messages("recompute", Share((99,))) == Tally()


def test_recompute_step_tells_errors_before_it_is_one():
    told = branch_of(4, recomputes=True).messages("forecast", Share.even(7560, 4))
    assert list(told) == [("forecast", "errors"), ("recompute", "attention"), ("recompute", "output")]
    assert told["forecast", "errors"] == Tally(75600 * 3 // 4 * 4, 1)
    assert told["recompute", "attention"].calls == 2 * 40


# -- memory


def test_kept_keys_and_values_of_wan_14b():
    """57.7 GiB a branch in bf16 at 720p; fp8 takes a byte and a 64th, and a subset of layers its share."""
    whole = branch_of(1, recomputes=True).kept_kv_bytes()
    assert whole == 2 * 40 * 75600 * 5120 * 2
    assert whole / GIB == pytest.approx(57.68, abs=0.01)
    assert branch_of(1, recomputes=True, kv_dtype="fp8").kept_kv_bytes() / whole == 0.5 + 1 / 128
    assert branch_of(1, recomputes=True, kv_layers=10).kept_kv_bytes() == whole // 4
    assert branch_of(8, recomputes=True).kept_kv_bytes() == whole // 8
    assert branch_of(8, recomputes=True, exchange="allgather_q").kept_kv_bytes() == whole // 8
    assert branch_of(8, recomputes=True, exchange="allgather_kv").kept_kv_bytes() == whole
    assert branch_of(1).kept_kv_bytes() == 0


def test_anchors_are_two_streams_of_as_many_full_steps_as_are_remembered():
    assert branch_of(1).anchor_bytes() == 6 * 75600 * 5120 * 2
    assert branch_of(8, anchors=2).anchor_bytes() == 4 * 9450 * 5120 * 2
    assert branch_of(1, has_probe=False, anchors=1).anchor_bytes() == 75600 * 5120 * 2


def test_nothing_is_kept_where_every_step_is_full():
    room = planned("world=1", "schedule=full", "scaling=[1]").chosen.room
    assert (room.anchors, room.kept) == (0, 0)


def test_what_does_not_fit_is_said_with_the_numbers():
    text = as_markdown(planned("world=1", "scaling=[1]", "gpu_gib=80"))
    assert "kept keys and values take 115.4 GiB" in text
    assert "kv_dtype=fp8 (then 58.6 GiB)" in text
    assert "Warning" not in as_markdown(planned("world=8", "scaling=[1]", "gpu_gib=80"))
    few = planned("world=1", "scaling=[1]", "tap.recompute.kv_offload=true")
    assert "Warning" not in as_markdown(few)
    assert "keys and values (on the CPU) | 115.4 |" in as_markdown(few)
    assert "weights and anchors take" in as_markdown(planned("world=1", "scaling=[1]", "gpu_gib=40"))


# -- seconds

MACHINE = Machine(tflops=500, memory=2500, nvlink=400, internode=40, latency=10, gpus_per_node=8)


@pytest.mark.parametrize(
    ("mesh", "gpus_per_node", "share", "halves"),
    [
        (Mesh(1, 1, 8), 8, 0, False),
        (Mesh(1, 2, 8), 8, 0, True),
        (Mesh(2, 2, 4), 8, 0, False),
        (Mesh(1, 1, 16), 8, 8 / 15, False),
        (Mesh(1, 1, 12), 8, 8 / 11, False),
        (Mesh(1, 1, 1), 8, 0, False),
    ],
)
def test_peers_on_other_nodes(mesh, gpus_per_node, share, halves):
    """Of the rank that has most of them."""
    assert mesh.far(gpus_per_node) == (pytest.approx(share), halves)


def test_seconds_in_closed_form():
    """Ten ranks on nodes of eight: the last two have one peer beside them and eight on the other node."""
    clip = planned("world=8", "scaling=[1]").clip
    clip = type(clip)(clip.arch, clip.grid, clip.text, clip.dtype, 1)
    found = estimate(clip, TapConfig(), full_plan(50), Mesh(1, 1, 10), "auto", MACHINE).steps["full"]
    bytes_ = 40 * 4 * 9 / 100 * 75600 * 5120 * 2 + 64 * 75600 * 9 / 10 * 2
    near, far = bytes_ * 1 / 9, bytes_ * 8 / 9
    assert found.received == pytest.approx(bytes_)
    assert found.links == pytest.approx(near / 400e9 + far / 40e9 + 81 * 10e-6)
    assert found.compute == found.flops / 500e12


def test_a_run_is_the_sum_of_its_steps():
    clip = planned("world=8", "scaling=[1]").clip
    steps = interval_plan(50, interval=4, warmup=3, last=1)
    found = estimate(clip, TapConfig(), steps, Mesh(1, 2, 4), "auto", MACHINE)
    assert found.seconds == pytest.approx(15 * found.steps["full"].seconds + 35 * found.steps["forecast"].seconds)
    assert found.seconds_full == pytest.approx(50 * found.steps["full"].seconds)
    assert found.steps["full"].messages["full", "guidance"] == Tally(64 * 75600 * 2, 1)


def test_candidates_are_counted_as_they_are_made():
    """At four steps from the last full one: its reuse, and four distances of order 1 and of order 2."""
    steps = interval_plan(50, interval=5, warmup=3, last=1)
    assert method_of(TapConfig(), steps).candidates == 9
    assert method_of(TapConfig(orders=[1], lookback=0.0), steps).candidates == 1


# -- the command


def test_scaling_takes_the_faster_mesh_and_counts_clips():
    table = planned("world=8").tables
    rows = {row.gpus: row for row in table["internode"]}
    assert list(rows) == [1, 2, 4, 8, 16, 32, 64]
    assert (rows[16].plain.mesh, rows[16].plain.attention) == (Mesh(1, 2, 8), "ulysses")
    assert rows[32].plain.attention == "allgather_kv"  # 16 ranks do not divide 40 heads
    assert rows[64].plain.seconds_full > table["nvlink"][-1].plain.seconds_full
    twice = as_json(planned("world=8", "parallel.dp=2", "scaling=[1,2,4]"))
    assert [row["gpus"] for row in twice["scaling"]["nvlink"]] == [2, 4]
    assert twice["scaling"]["nvlink"][0]["unaccelerated"]["speedup"] == pytest.approx(2)


def test_json_has_every_message_and_adds_up():
    found = as_json(planned("model=wan", "world=12", "parallel.cfg=2", "tap.recompute.budget=0.25", "scaling=[1,2]"))
    assert json.loads(json.dumps(found)) == found
    steps = found["chosen"]["steps"]
    assert {m["what"] for step in steps.values() for m in step["messages"]} == {
        "attention",
        "output",
        "errors",
        "guidance",
    }
    for step in steps.values():
        assert step["bytes_received"] == sum(m["bytes"] for m in step["messages"])
    assert found["chosen"]["recomputed_tokens"] == 32760 // 4


def test_command_prints_markdown_or_json(capsys):
    plan.main(["model=wan_tiny", "world=2", "scaling=[1,2]"])
    assert capsys.readouterr().out.startswith("# wan_tiny, 17 frames of 64 x 64, 2 ranks\n")
    plan.main(["model=wan_tiny", "world=2", "scaling=[1,2]", "--json"])
    assert json.loads(capsys.readouterr().out)["tokens"] == 320
    plan.main(["--help"])
    assert "gpus_per_node" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("foo", "'foo' is not key=value; allowed: e.g. model=wan_14b world=8"),
        ("model=foo", "model='foo' is not known; allowed: "),
        ("heigth=3", "heigth=3: there is no key 'heigth'; allowed: model, "),
        ("tap.recompute.bugdet=1", "there is no key 'tap.recompute.bugdet'; allowed: tap.recompute.budget, "),
        ("world.x=1", "there is no key 'world.x'; allowed: world"),
        ("tap.recompute=1", "'tap.recompute' is a group of keys; allowed: tap.recompute.budget, "),
        ("+world=1", "there is no key '+world'"),
        ("world=[", "world=[ cannot be read; allowed: key=NUMBER"),
        ("world=abc", "world: Value 'abc' of type 'str' could not be converted to Integer"),
        ("world=0", "world=0 is too small; allowed: 1 or more"),
        ("world=8 parallel.sp=3", "makes 3 ranks, and there are 8; allowed: a product of 8"),
        ("height=100", "height=100 is not of whole tokens; allowed: multiples of 16"),
        ("num_frames=80", "num_frames=80 is not of whole tokens; allowed: 1, 5, .."),
        ("world=16 parallel.attention=ulysses", "16 ranks do not divide 40; allowed: 1, 2, 4, 5, 8, 10, 20, 40"),
        ("guidance=1 parallel.cfg=2", "parallel.cfg=2 splits guidance, and there is none; allowed: 1"),
        ("model=wan_tiny world=400", "parallel.sp=400 ranks cannot share 320 tokens; allowed: 1 to 320"),
        ("tap.recompute.kv_layers=[40]", "tap.recompute.kv_layers=[40] of 40 blocks; allowed: 0 to 39"),
        ("tap.probe=block_output tap.probe_depth=40", "tap.probe_depth=40 of 40 blocks; allowed: 1 to 39"),
        ("schedule=explicit steps=20", "outside this run; allowed: 0 to 19"),
        ("parallel.attention=usp parallel.groups=xfuser", "parallel.attention='usp' sends what we do not count"),
        ("arch.patch_size=[1,2]", "arch.patch_size=[1, 2] is not a size; allowed: three integers from 1"),
        ("efficiency=2", "efficiency=2.0 is a share; allowed: above 0, up to 1"),
        ("gpu_gib=nan", "gpu_gib=nan is not positive and finite"),
        ("scaling=[0]", "scaling=[0] is not a list of numbers of GPUs; allowed: integers from 1"),
        ("format=xml", "format='xml' is not known; allowed: markdown, json"),
    ],
)
def test_bad_input_is_one_line_with_key_value_and_what_is_allowed(capsys, arguments, said):
    with pytest.raises(SystemExit) as stopped:
        plan.main(arguments.split())
    told = capsys.readouterr()
    assert (stopped.value.code, told.out) == (2, "")
    assert told.err.count("\n") == 1
    assert said in told.err


def test_calibrated_methods_are_planned_without_a_calibration():
    """What a run costs depends on how many steps are full, and not on which; there is one candidate and no probe."""
    found = planned("model=wan", "tap=default", "schedule.speedup=2.5", "steps=50")
    assert found.chosen.plan.count(StepKind.FULL) == 20
    simpler = planned("model=wan", "tap=reuse", "schedule=spread", "schedule.speedup=2.5", "tap.anchors=3", "steps=50")
    assert found.chosen.seconds == pytest.approx(simpler.chosen.seconds, rel=1e-3)


def test_a_model_of_unknown_sizes_is_refused(monkeypatch):
    monkeypatch.setattr(plan, "_names", lambda group: ("wan", "other") if group == "model" else ("wan",))
    with pytest.raises(ValueError, match="model=other: nothing is known of its sizes; allowed with it: arch=wan"):
        plan.read(["model=other"])


def test_config_file_has_the_keys_and_defaults_of_its_dataclass():
    with initialize_config_dir(str(config_dir().resolve()), version_base="1.3"):
        raw = compose("plan")
    assert set(raw) == set(plan.PlanConfig.__dataclass_fields__)
    own, groups = plan.PlanConfig(), {*plan.GROUPS, "model"}
    read = plan.read([])
    assert all(getattr(read, key) == getattr(own, key) for key in raw if key not in groups)
    assert set(raw.arch) == set(Architecture.__dataclass_fields__)
