"""Plans without weights: sizes, operations, bytes and memory against other ways to come by them."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from model_cases import CASES
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import CLIPVisionConfig, CLIPVisionModel

from tapvideo.parallel import plan
from tapvideo.parallel.arch import Architecture
from tapvideo.parallel.cost import Branch, Method, Share
from tapvideo.parallel.ledger import Tally
from tapvideo.parallel.plan_tables import as_markdown

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
            image_dim=arch.image_dim if arch.image_tokens else None,
            added_kv_proj_dim=arch.dim if arch.image_tokens else None,
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


@pytest.mark.parametrize("name", ["wan", "wan_14b", "wan_tiny", "wan_i2v", "wan22_i2v"])
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


def test_pictures_take_their_encoder_and_more_of_every_block():
    seen, in_channels = planned("model=wan_i2v").clip.arch, planned("model=wan22_i2v").clip.arch
    vision = CLIPVisionConfig(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, patch_size=14
    )  # as in CLIP ViT-H/14
    with torch.device("meta"):
        encoder = CLIPVisionModel(vision)
    more = sum(parameter.numel() for parameter in encoder.parameters())
    assert (seen.image_encoder_params, in_channels.image_encoder_params) == (more, 0)
    text = arch_of("wan_14b").pipeline_bytes(torch.bfloat16)
    assert seen.pipeline_bytes(torch.bfloat16) == text + 4 * more  # diffusers' example has it in fp32, and so do runs
    assert arch_of("skyreels_i2v") == seen
    assert seen.image_tokens == (vision.image_size // vision.patch_size) ** 2 + 1
    assert (in_channels.in_numbers, in_channels.image_tokens) == (144, 0)


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


@torch.no_grad()
def test_operations_count_the_tokens_of_a_picture():
    case = next(case for case in CASES if case.name == "Wan 2.1 I2V")
    model = case.transformer()
    arch = Architecture(
        layers=3, heads=4, head_dim=12, ffn_dim=32, in_channels=9, out_channels=4, text_dim=8, freq_dim=16,
        image_tokens=5, image_dim=10,
    )  # fmt: skip
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(display=False, custom_mapping={fused: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)})
    inputs = case.inputs(model, case.noise(model), 900.0, "cond")
    with counter:
        model(**inputs)
    tokens = math.prod(inputs["hidden_states"].shape[2:]) // 4
    branch = Branch(arch=arch, method=Method(), tokens=Share((tokens,)), text=512, dtype=torch.float32)
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


def test_a_branch_that_follows_on_the_same_latents_makes_and_keeps_no_probes():
    first, stream = branch_of(1), 75600 * 5120 * 2
    twin = replace(first, twin=True)
    assert (first.anchor_bytes(), twin.anchor_bytes()) == (6 * stream, 3 * stream)
    assert first.traffic("forecast") - twin.traffic("forecast") == 3 * stream
    assert first.flops("forecast") - twin.flops("forecast") == 2 * 75600 * (16 * 5120 + 16 * 15 + 4 * 15)
    assert first.flops("full") == twin.flops("full")
    of_a_block = branch_of(1, probe_depth=1)  # which sees the text
    assert replace(of_a_block, twin=True).anchor_bytes() == of_a_block.anchor_bytes()
    together, apart = (
        planned(f"world={ranks}", f"parallel.cfg={ranks}", "parallel.sp=1", "scaling=[1]").chosen.room
        for ranks in (1, 2)
    )
    assert 4 * together.anchors == 6 * apart.anchors


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
