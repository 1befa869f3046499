"""Text and rotary tables that no block will read are not made, and nothing else changes."""

from contextlib import nullcontext

import pytest
import torch
from diffusers.hooks import HookRegistry
from model_cases import CASES, denoise
from peft import LoraConfig
from torch import nn
from wan_random import denoise as denoise_pipe

from tapvideo import ScheduleConfig, TapConfig, enable_tap
from tapvideo.config import RecomputeConfig
from tapvideo.models import adapter_for
from tapvideo.models import alike as alike_module
from tapvideo.models.alike import Shared
from tapvideo.models.hook import HOOK_NAME, TapHook
from tapvideo.models.unread import UnreadTables, UnreadText, replaced

WAN_LIKE = ["Wan 2.1 T2V", "Wan 2.1 I2V", "Wan 2.1 FLF2V", "Wan 2.2 TI2V", "SkyReels-V2 T2V", "SkyReels-V2 I2V"]
ROTARY = [*WAN_LIKE, "HunyuanVideo T2V", "HunyuanVideo I2V, tokens", "HunyuanVideo 1.5 T2V", "Mochi", "CogView4"]
ROTARY += ["LTX-Video T2V", "LTX-Video I2V", "LTX-2 T2V", "LTX-2 I2V", "LTX-2.3 T2V"]
SCHEDULE = ScheduleConfig(kind="explicit", steps=[0, 1, 5, 9], warmup=1, min_steps=0)


def calls(module):
    """A list that grows with every call."""
    seen = []
    module.register_forward_hook(lambda *_: seen.append(1))
    return seen


def projections(transformer):
    return calls(transformer.condition_embedder.text_embedder)


@pytest.mark.parametrize("name", ROTARY)
def test_forecasts_without_text_and_tables_are_those_with_them(name, monkeypatch):
    case = next(case for case in CASES if case.name == name)
    transformer = case.transformer()
    forwards = calls(transformer.proj_out)
    tables = [calls(getattr(transformer, place)) for place in adapter_for(transformer).rotary]
    made = [*tables, *([projections(transformer)] if name in WAN_LIKE else [])]
    tap = enable_tap(transformer, TapConfig(schedule=SCHEDULE))
    without = denoise(case, transformer)
    assert [3 * len(seen) for seen in made] == [len(forwards)] * len(made)  # 4 of 12 steps are full
    tap.disable()
    monkeypatch.setattr(TapHook, "_with_least", lambda *_: nullcontext())
    enable_tap(transformer, TapConfig(schedule=SCHEDULE))
    assert torch.equal(denoise(case, transformer), without)
    assert [3 * len(seen) for seen in made] == [2 * len(forwards)] * len(made)  # and here all of them again


@pytest.mark.parametrize(
    "config",
    [
        TapConfig(schedule=SCHEDULE, recompute=RecomputeConfig(budget=0.2)),
        TapConfig(schedule=SCHEDULE, probe="block_output"),
    ],
)
def test_text_and_tables_are_made_where_a_block_runs(wan, config):
    pipe = wan.random_pipeline()
    made = projections(pipe.transformer), calls(pipe.transformer.rope)
    enable_tap(pipe, config)
    assert denoise_pipe(pipe, steps=12).isfinite().all()
    assert [len(seen) for seen in made] == [2 * 12] * 2


@pytest.mark.parametrize(("batches", "sizes"), [((1, 2), (4, 4)), ((1, 1), (4, 8))])
def test_another_size_in_the_midst_of_a_run_is_computed(wan, batches, sizes):
    """Its anchors are of no use, so blocks run, and they need the text."""
    transformer = wan.random_transformer()
    enable_tap(transformer, TapConfig(schedule=SCHEDULE))
    for step in range(12):
        batch, size = batches[step >= 3], sizes[step >= 3]
        latents, text = torch.randn(batch, 4, 2, 4, size), torch.randn(batch, 6, 8)
        where = transformer.cache_context("cond", step_index=step, num_inference_steps=12)
        with torch.no_grad(), where:
            made = transformer(latents, torch.full((batch,), 900.0 - step), text, return_dict=False)[0]
        assert made.isfinite().all()


def test_who_reads_it_after_all_notices(wan):
    """And the model has its own again, whatever happened."""
    transformer = wan.random_transformer()
    text, rope = transformer.condition_embedder.text_embedder, transformer.rope
    stand_ins = {"condition_embedder.text_embedder": UnreadText(32), "rope": UnreadTables()}
    with replaced(transformer, stand_ins):
        made = transformer.condition_embedder.text_embedder(torch.ones(2, 6, 8))
        tables = transformer.rope(torch.ones(1, 4, 2, 4, 4))
    assert made.shape == (2, 6, 32)
    assert made.isnan().all()
    assert made.untyped_storage().nbytes() == 4
    assert all(table.isnan().all() for table in tables)
    with pytest.raises(KeyError), replaced(transformer, stand_ins):
        raise KeyError
    assert transformer.condition_embedder.text_embedder is text
    assert transformer.rope is rope


def test_it_is_put_inside_of_what_is_compiled(wan):
    """A compiled module has one submodule only, and passes on what is set to that."""
    transformer = wan.random_transformer()
    inner, text = transformer.condition_embedder, transformer.condition_embedder.text_embedder
    transformer.condition_embedder = torch.compile(inner)
    stand_in = UnreadText(32)
    with replaced(transformer, {"condition_embedder.text_embedder": stand_in}):
        assert inner.text_embedder is stand_in
    assert inner.text_embedder is text
    assert list(transformer.condition_embedder._modules) == ["_orig_mod"]


def test_blocks_that_get_no_tables_fail(wan):
    """Attention without positions would be wrong and look right."""
    transformer = wan.random_transformer()
    latents, text = torch.randn(1, 4, 2, 4, 4), torch.randn(1, 6, 8)
    with replaced(transformer, {"rope": UnreadTables()}), torch.no_grad(), pytest.raises(RuntimeError, match="size"):
        transformer(latents, torch.full((1,), 900.0), text)


def test_what_branches_have_in_common_is_made_once(wan):
    pipe = wan.random_pipeline()
    made = [calls(module) for module in (pipe.transformer.patch_embedding, pipe.transformer.condition_embedder)]
    hook = enable_tap(pipe, TapConfig(schedule=SCHEDULE))
    assert denoise_pipe(pipe, steps=12).isfinite().all()
    assert [len(seen) for seen in made] == [2 * 4 + 8] * 2
    hook.disable()


@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_what_was_made_is_not_kept_for_long(wan, guidance, monkeypatch):
    """Not while blocks run, not after the run, and not at all where there is one branch."""
    kept = []
    pipe = wan.random_pipeline()
    enable_tap(pipe, TapConfig(schedule=SCHEDULE))
    hook = HookRegistry.check_if_exists_or_initialize(pipe.transformer).get_hook(HOOK_NAME)
    look = lambda *_: kept.extend(len(shared._kept) for shared in hook._alike.shared.values())  # noqa: E731
    pipe.transformer.blocks[0].register_forward_pre_hook(look)
    denoise_pipe(pipe, steps=12, guidance=guidance, callback_on_step_end=lambda *_: look() or {})
    assert len(kept) == 2 * 12 + 2 * 4 * (2 if guidance > 1 else 1)
    assert set(kept) == {0}
    assert [s._kept for s in hook._alike.shared.values()] == [[], []]


def test_what_was_made_makes_room_where_the_second_branch_stays_away(wan):
    """As where guidance ends in mid-run."""
    transformer, kept = wan.random_transformer(), []
    enable_tap(transformer, TapConfig(schedule=SCHEDULE))
    hook = HookRegistry.check_if_exists_or_initialize(transformer).get_hook(HOOK_NAME)
    shared = list(hook._alike.shared.values())
    transformer.blocks[0].register_forward_pre_hook(lambda *_: kept.extend(len(s._kept) for s in shared))
    for step in range(6):
        latents, now = torch.randn(1, 4, 2, 4, 4), torch.full((1,), 900.0 - step)
        for branch in ("cond", "uncond")[: 2 if step < 2 else 1]:
            with torch.no_grad(), transformer.cache_context(branch, step_index=step, num_inference_steps=12):
                transformer(latents, now, torch.randn(1, 6, 8))
        assert step != 4 or all(s._kept for s in shared)
    assert kept == [0] * 2 * (2 + 2 + 1)


def test_branches_of_other_sizes_have_their_own_timestep():
    """CogView4 embeds the sizes with it, and the head reads what it makes."""
    case = next(case for case in CASES if case.name == "CogView4")
    made = []
    for shares in (True, False):
        transformer = case.transformer()
        enable_tap(transformer, TapConfig(schedule=SCHEDULE))
        hook = HookRegistry.check_if_exists_or_initialize(transformer).get_hook(HOOK_NAME)
        if not shares:
            hook._alike.shared = {}
        latents = case.noise(transformer)
        for step in range(4):
            now = case.inputs(transformer, latents, 900.0 - step, "cond")["timestep"]
            for branch in ("cond", "uncond"):
                given = case.inputs(transformer, latents, 900.0 - step, branch) | {"timestep": now}
                given["original_size"] = torch.full((1, 2), 512.0 if branch == "cond" else 64.0)
                where = transformer.cache_context(branch, step_index=step, num_inference_steps=12)
                with torch.no_grad(), where:
                    made.append(transformer(**given, return_dict=False)[0])
    assert all(torch.equal(*both) for both in zip(made[:8], made[8:], strict=True))


def test_nothing_is_kept_where_branches_get_different_tensors():
    shared = Shared()
    shared.stand_for(nn.Identity())
    for _ in range(3):
        shared(torch.ones(2))
        assert shared._kept
        shared(torch.ones(2))
        assert not shared._kept


def test_a_tensor_that_was_changed_is_computed_anew():
    shared, seen = Shared(), []
    original = nn.Identity()
    original.register_forward_hook(lambda *_: seen.append(1))
    shared.stand_for(original)
    given = torch.ones(2)
    shared(given)
    shared(given)
    assert len(seen) == 1
    shared(given)  # the second branch has had it; this is another step
    given.add_(1)
    shared(given)
    assert len(seen) == 3
    shared(given.clone())
    assert len(seen) == 4
    shared(torch.ones(2))  # of the same version, and not the same
    assert len(seen) == 5
    with torch.inference_mode():
        told = torch.ones(2)
        shared(told)
        shared(told)
    assert len(seen) == 7


def test_what_takes_much_room_is_not_kept(monkeypatch):
    shared, given = Shared(), torch.ones(8)
    shared.stand_for(nn.Identity())
    monkeypatch.setattr(alike_module, "_ROOM", 31)
    shared(given)
    assert not shared._kept
    monkeypatch.setattr(alike_module, "_ROOM", 32)
    shared(given)
    assert shared._kept


@pytest.mark.parametrize("scale", [0.25, 1.0])
def test_a_lora_scale_of_the_call_reaches_what_is_shared(wan, scale):
    """Layers are looked for within the forward, where the stand-ins are."""
    transformer = wan.random_transformer()
    targets = ["condition_embedder.time_embedder.linear_1", "condition_embedder.time_proj", "patch_embedding"]
    torch.manual_seed(5)
    transformer.add_adapter(LoraConfig(r=2, lora_alpha=8, target_modules=targets, init_lora_weights=False))

    def run():
        torch.manual_seed(6)
        latents, texts = torch.randn(1, 4, 2, 4, 4), {"cond": torch.randn(1, 6, 8), "uncond": torch.randn(1, 6, 8)}
        for step in range(12):
            now, made = torch.full((1,), 900.0 - 70 * step), {}
            for branch, text in texts.items():
                where = transformer.cache_context(branch, step_index=step, num_inference_steps=12)
                with torch.no_grad(), where:
                    made[branch] = transformer(latents, now, text, attention_kwargs={"scale": scale}).sample
            latents = latents - 0.08 * (made["uncond"] + 3 * (made["cond"] - made["uncond"]))
        return latents

    tap = enable_tap(transformer, TapConfig(schedule=SCHEDULE))
    shared = run()
    tap.disable()
    enable_tap(transformer, TapConfig(schedule=SCHEDULE))
    HookRegistry.check_if_exists_or_initialize(transformer).get_hook(HOOK_NAME)._alike.shared = {}
    assert torch.equal(run(), shared)
