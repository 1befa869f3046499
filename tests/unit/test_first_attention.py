"""On a full step both branches have one first self-attention, where no text has come before it, and the same frames."""

from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from peft import LoraConfig
from wan_random import denoise as denoise_pipe

from tapvideo import ScheduleConfig, TapConfig, enable_tap
from tapvideo.config import RecomputeConfig
from tapvideo.models import alike as alike_module
from tapvideo.models.alike import Alike, SharedAttention, is_plain
from tapvideo.models.hook import HOOK_NAME

SCHEDULE = ScheduleConfig(kind="explicit", steps=[0, 1, 5, 9], warmup=1, min_steps=0)
ALONE, SHARED = 2 * 4, 2 + 3
"""Calls on four full steps; on the first one it is not known yet that a second branch comes."""


@pytest.fixture
def ran(monkeypatch):
    """The self-attentions that were computed, one by one."""
    found, original = [], WanAttnProcessor.__call__

    def call(self, attn, hidden, text=None, *args, **kwargs):
        if text is None:
            found.append(attn)
        return original(self, attn, hidden, text, *args, **kwargs)

    monkeypatch.setattr(WanAttnProcessor, "__call__", call)
    return found


def count(ran, transformer, layer=0):
    return sum(attn is transformer.blocks[layer].attn1 for attn in ran)


def alone(monkeypatch):
    monkeypatch.setattr(Alike, "attending", lambda *_, **__: {})


def hook_of(transformer):
    return HookRegistry.check_if_exists_or_initialize(transformer).get_hook(HOOK_NAME)


@pytest.mark.parametrize("steps", [[0, 1, 5, 9], list(range(12))], ids=["some steps full", "all"])
def test_it_runs_once_for_both_branches(wan, ran, monkeypatch, steps):
    made, plain = [], wan.random_pipeline()
    schedule = ScheduleConfig(kind="explicit", steps=steps, warmup=1, min_steps=0)
    for _ in range(2):
        ran.clear()
        pipe = wan.random_pipeline()
        enable_tap(pipe, TapConfig(schedule=schedule))
        made += [denoise_pipe(pipe, steps=12), [count(ran, pipe.transformer, layer) for layer in range(3)]]
        alone(monkeypatch)
    with_it, runs, without, all_runs = made
    assert torch.equal(with_it, without)
    assert all_runs == [2 * len(steps)] * 3
    assert runs == [len(steps) + 1, *all_runs[1:]]
    if len(steps) == 12:
        assert torch.equal(denoise_pipe(plain, steps=12), with_it)


def call(transformer, step, branch, latents, now):
    where = transformer.cache_context(branch, step_index=step, num_inference_steps=12)
    with torch.no_grad(), where:
        return transformer(latents, now, torch.full((1, 6, 8), float(len(branch))), return_dict=False)[0]


def calls(transformer, between):
    """A run in which something happens before the second branch; it may give out other latents."""
    chance, made = torch.Generator().manual_seed(0), []
    for step in range(12):
        latents, now = torch.randn(1, 4, 2, 4, 4, generator=chance), torch.full((1,), 900.0 - step)
        made.append(call(transformer, step, "cond", latents, now))
        other = between(latents)
        made.append(call(transformer, step, "uncond", latents if other is None else other, now))
    return torch.stack(made)


@pytest.mark.parametrize(
    ("between", "runs"),
    [
        (lambda latents: None, SHARED),
        (lambda latents: latents + 0.5, ALONE),
        (lambda latents: latents.add_(0.5), ALONE),
        (lambda latents: latents.clone(), ALONE),
    ],
    ids=["the same", "others", "changed in place", "equal"],
)
def test_it_runs_again_on_other_latents(wan, ran, monkeypatch, between, runs):
    made = []
    for expected in (runs, ALONE):
        ran.clear()
        transformer = wan.random_transformer()
        enable_tap(transformer, TapConfig(schedule=SCHEDULE))
        made.append(calls(transformer, between))
        assert count(ran, transformer) == expected
        alone(monkeypatch)
    assert torch.equal(*made)


class Own(WanAttnProcessor):
    """Which may have a memory."""


class Perturbs(ModelHook):
    """As guidance by a perturbed branch does it."""

    def post_forward(self, module, output):
        return 2 * output


def test_a_branch_whose_attention_is_perturbed_has_its_own(wan, ran, monkeypatch):
    made = []
    for _ in range(2):
        transformer = wan.random_transformer()
        enable_tap(transformer, TapConfig(schedule=SCHEDULE))

        def perturb(latents, attn=transformer.blocks[0].attn1):
            registry = HookRegistry.check_if_exists_or_initialize(attn)
            if registry.get_hook("perturbs") is None:
                registry.register_hook(Perturbs(), "perturbs")

        def calm(latents, attn=transformer.blocks[0].attn1):
            HookRegistry.check_if_exists_or_initialize(attn).remove_hook("perturbs")

        chance, outputs = torch.Generator().manual_seed(0), []
        for step in range(6):
            latents, now = torch.randn(1, 4, 2, 4, 4, generator=chance), torch.full((1,), 900.0 - step)
            for branch, act in (("cond", calm), ("uncond", perturb)):
                if step:
                    act(latents)
                outputs.append(call(transformer, step, branch, latents, now))
        made.append(torch.stack(outputs))
        alone(monkeypatch)
    assert torch.equal(*made)


def nudge(module, args, output):
    return output + 0.5


@pytest.mark.parametrize("place", ["patch_embedding", "blocks.0.norm1", "condition_embedder.time_proj", "rope"])
def test_what_one_branch_alone_is_given_counts(wan, ran, monkeypatch, place):
    made = []
    for expected in (ALONE, ALONE):
        ran.clear()
        transformer, handles = wan.random_transformer(), []
        enable_tap(transformer, TapConfig(schedule=SCHEDULE))

        module = transformer.get_submodule(place)

        def turn(module=module, handles=handles):
            """On for one branch, off for the other."""
            if handles:
                handles.pop().remove()
            else:
                hook = nudge if place != "rope" else lambda m, a, output: (output[0] * 0.5, output[1])
                handles.append(module.register_forward_hook(hook))

        chance, outputs = torch.Generator().manual_seed(0), []
        for step in range(12):
            latents, now = torch.randn(1, 4, 2, 4, 4, generator=chance), torch.full((1,), 900.0 - step)
            for branch in ("cond", "uncond"):
                turn()
                outputs.append(call(transformer, step, branch, latents, now))
        made.append(torch.stack(outputs))
        assert count(ran, transformer) == expected
        alone(monkeypatch)
    assert torch.equal(*made)


def test_gradients_go_through_every_branchs_own(wan):
    transformer = wan.random_transformer()
    enable_tap(transformer, TapConfig(schedule=SCHEDULE))
    latents, text = torch.randn(1, 4, 2, 4, 4, requires_grad=True), torch.ones(1, 6, 8)
    for step in range(2):
        now = torch.full((1,), 900.0 - step)
        for branch in ("cond", "uncond"):
            with transformer.cache_context(branch, step_index=step, num_inference_steps=12):
                transformer(latents, now, text, return_dict=False)[0].sum().backward()


@torch.no_grad()
def test_weights_whose_changes_nobody_counts_are_read_anew(wan):
    with torch.inference_mode():
        attention = wan.random_transformer().blocks[0].attn1
    assert not is_plain(attention)


def lora(transformer):
    targets = ["blocks.0.attn1.to_q"]
    transformer.add_adapter(LoraConfig(r=2, lora_alpha=8, target_modules=targets, init_lora_weights=False))


@pytest.mark.parametrize(
    "prepare",
    [
        lora,
        lambda transformer: transformer.blocks[0].attn1.to_q.register_forward_hook(lambda *_: None),
        lambda transformer: transformer.blocks[0].attn1.register_forward_pre_hook(lambda *_: None),
        lambda transformer: HookRegistry.check_if_exists_or_initialize(transformer.blocks[0].attn1.to_k),
        lambda transformer: setattr(transformer.blocks[0].attn1.to_v, "_hf_hook", object()),
        lambda transformer: transformer.blocks[0].compile(backend="eager"),
        lambda transformer: transformer.blocks[0].attn1.compile(backend="eager"),
        lambda transformer: setattr(transformer.blocks[0].attn1, "forward", transformer.blocks[0].attn1.forward),
        lambda transformer: transformer.blocks[0].attn1.set_processor(Own()),
        lambda transformer: transformer.train(),
    ],
    ids=(
        "lora hook pre-hook diffusers'-hook accelerate's-hook compiled-block compiled own-forward own-processor dropout"
    ).split(),
)
@torch.no_grad()
def test_a_call_that_somebody_would_miss_is_made(wan, prepare):
    transformer = wan.random_transformer()
    prepare(transformer)
    enable_tap(transformer, TapConfig(schedule=SCHEDULE))
    alike = hook_of(transformer)._alike
    assert alike.attending(transformer, repeats=False, others=True) == {}
    assert list(alike.attending(wan.random_transformer(), repeats=False, others=True)) == ["blocks.0.attn1"]
    assert is_plain(wan.random_transformer().blocks[0].attn1)


@torch.no_grad()
def test_a_block_in_a_compiled_ones_place_is_left_alone(wan):
    transformer = wan.random_transformer()
    enable_tap(transformer, TapConfig(schedule=SCHEDULE))
    alike = hook_of(transformer)._alike
    transformer.blocks[0] = torch.compile(transformer.blocks[0], backend="eager")
    assert alike.attending(transformer, repeats=False, others=True) == {}


def test_recomputed_tokens_need_the_keys_of_every_branch(wan, ran):
    pipe = wan.random_pipeline()
    enable_tap(pipe, TapConfig(schedule=SCHEDULE, recompute=RecomputeConfig(budget=0.2)))
    alike = hook_of(pipe.transformer)._alike
    assert alike.attending(pipe.transformer, repeats=False, others=True) == {}


def test_where_one_branch_comes_alone_nothing_is_kept(wan):
    pipe, kept = wan.random_pipeline(), []
    enable_tap(pipe, TapConfig(schedule=SCHEDULE))
    *_, shared = hook_of(pipe.transformer)._alike._attention
    pipe.transformer.blocks[1].register_forward_pre_hook(lambda *_: kept.append(len(shared._kept)))
    denoise_pipe(pipe, steps=12, guidance=1.0)
    assert kept == [0] * 4


def test_nothing_is_kept_when_both_have_it(wan):
    pipe, kept = wan.random_pipeline(), []
    enable_tap(pipe, TapConfig(schedule=SCHEDULE))
    *_, shared = hook_of(pipe.transformer)._alike._attention
    pipe.transformer.blocks[1].register_forward_pre_hook(lambda *_: kept.append(len(shared._kept)))
    denoise_pipe(pipe, steps=12)
    assert kept == [0, 0] + [1, 0] * 3
    assert shared._kept == []


def test_it_goes_where_the_second_branch_stays_away(wan):
    """As where guidance ends in mid-run, or a run is aborted."""
    transformer = wan.random_transformer()
    tap = enable_tap(transformer, TapConfig(schedule=SCHEDULE))
    *_, shared = hook_of(transformer)._alike._attention
    transformer.blocks[2].register_forward_pre_hook(lambda *_: [1 / 0] if len(seen) == 3 else None)
    seen = []
    for step, branch in ((0, "cond"), (0, "uncond"), (1, "cond"), (5, "cond")):
        with suppress(ZeroDivisionError):
            call(transformer, step, branch, torch.ones(1, 4, 2, 4, 4), torch.full((1,), 900.0 - step))
        seen.append(len(shared._kept))
    assert seen == [0, 1, 1, 1]  # every call's own, of other latents each
    transformer._reset_stateful_cache()
    assert shared._kept == []
    tap.disable()


@pytest.mark.parametrize(("room", "kept"), [(2 * 4 * 6 - 1, 0), (2 * 4 * 6, 1)])
def test_what_takes_much_room_is_not_kept(monkeypatch, room, kept):
    monkeypatch.setattr(alike_module, "_ATTENTION_ROOM", room)
    shared = SharedAttention()
    shared.stand_for(Doubles())
    shared.keeps = True
    shared(torch.ones(6))
    assert len(shared._kept) == kept


class Doubles(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.processor = SimpleNamespace(_attention_backend=None)
        self.weight = torch.nn.Parameter(torch.tensor(2.0), requires_grad=False)

    def forward(self, given, *rest):
        return self.weight * given


def cast(_):
    torch.set_autocast_enabled("cpu", True)


@pytest.fixture(autouse=True)
def uncast():
    yield
    torch.set_autocast_enabled("cpu", False)


ONES = torch.ones(2)


@pytest.mark.parametrize(
    ("change", "given", "again"),
    [
        (lambda _: None, (ONES, None, (ONES, ONES)), False),
        (lambda _: None, (ONES.clone(), None, (ONES.clone(), ONES)), False),
        (lambda _: None, (0 * ONES, None, (ONES, ONES)), True),
        (lambda _: None, (ONES.double(), None, (ONES, ONES)), True),
        (lambda _: None, (ONES, ONES, (ONES, ONES)), True),
        (lambda _: None, (ONES, None, (ONES, 0 * ONES)), True),
        (lambda _: None, (ONES, None, (ONES,)), True),
        (lambda _: None, (ONES, None, None), True),
        (lambda original: original.weight.mul_(1), (ONES, None, (ONES, ONES)), True),
        (lambda original: setattr(original, "processor", "another"), (ONES, None, (ONES, ONES)), True),
        (lambda original: setattr(original.processor, "_attention_backend", "sage"), (ONES, None, (ONES, ONES)), True),
        (cast, (ONES, None, (ONES, ONES)), True),
    ],
    ids="same equal others double text tables fewer-tables no-tables weights processor backend autocast".split(),
)
def test_it_is_made_again_of_anything_else(change, given, again):
    original, shared = Doubles(), SharedAttention()
    shared.stand_for(original)
    shared.keeps = True
    first = shared(ONES, None, (ONES, ONES))
    change(original)
    assert (shared(*given) is not first) == again
    assert shared._kept == [] or again


def test_it_is_made_again_where_somebody_has_changed_it():
    shared = SharedAttention()
    shared.stand_for(Doubles())
    shared.keeps = True
    shared(ONES).add_(1)
    assert shared(ONES).sum() == 4
    shared.stand_for(Doubles())
    assert shared._kept == []
    with torch.inference_mode():
        shared(ONES)
    assert shared._kept == []
