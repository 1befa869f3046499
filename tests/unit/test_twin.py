"""Branches that get the same latents and timestep have one probe, and nothing else changes."""

import gc
import weakref
from contextlib import suppress

import pytest
import torch
from diffusers.hooks import HookRegistry
from wan_random import denoise as denoise_pipe

from tapvideo import ScheduleConfig, TapConfig, enable_tap
from tapvideo import stack as stack_module
from tapvideo.config import RecomputeConfig
from tapvideo.history import BranchState, StepContext
from tapvideo.memory import kept_on_this_rank
from tapvideo.models.alike import LastCall
from tapvideo.models.hook import HOOK_NAME
from tapvideo.models.wan import WanAdapter
from tapvideo.parallel.topology import alone
from tapvideo.twin import Before

SCHEDULE = ScheduleConfig(kind="explicit", steps=[0, 1, 5, 9], warmup=1, min_steps=0)


@pytest.fixture
def seen(monkeypatch):
    """Names of what is computed for probes, call by call."""
    found = []

    def spy(owner, name):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **kwargs: found.append(name) or original(*args, **kwargs))

    spy(WanAdapter, "modulated_input")
    spy(stack_module, "proxy_error")
    return found


def without_twins(monkeypatch):
    monkeypatch.setattr(LastCall, "is_repeated", lambda *_: False)


@pytest.mark.parametrize(
    "config",
    [
        TapConfig(schedule=SCHEDULE),
        TapConfig(schedule=SCHEDULE, choice="sample"),
        TapConfig(schedule=SCHEDULE, recompute=RecomputeConfig(budget=0.2)),
    ],
    ids=["token", "sample", "recompute"],
)
def test_one_probe_serves_both_branches(wan, seen, monkeypatch, config):
    pipe = wan.random_pipeline()
    tap = enable_tap(pipe, config)
    shared = denoise_pipe(pipe, steps=12)
    assert (seen.count("modulated_input"), seen.count("proxy_error")) == (4 + 8, 8)
    tap.disable()
    without_twins(monkeypatch)
    enable_tap(pipe, config)
    assert torch.equal(denoise_pipe(pipe, steps=12), shared)
    assert (seen.count("modulated_input"), seen.count("proxy_error")) == (3 * (4 + 8), 3 * 8)


def test_probes_of_blocks_are_every_branchs_own(wan, seen, monkeypatch):
    """They have seen the text."""
    pipe, config = wan.random_pipeline(), TapConfig(schedule=SCHEDULE, probe="block_output")
    tap = enable_tap(pipe, config)
    found = denoise_pipe(pipe, steps=12)
    assert seen.count("proxy_error") == 2 * 8
    tap.disable()
    without_twins(monkeypatch)
    enable_tap(pipe, config)
    assert torch.equal(denoise_pipe(pipe, steps=12), found)


def calls(transformer, *, branches, latents_of):
    """A run of twelve steps; `latents_of(branch, common)` is what a branch gets of the step's latents."""
    made, chance = [], torch.Generator().manual_seed(0)
    for step in range(12):
        common, now = torch.randn(1, 4, 2, 4, 4, generator=chance), torch.full((1,), 900.0 - step)
        for branch in branches(step):
            text = torch.full((1, 6, 8), float(len(branch)))
            where = transformer.cache_context(branch, step_index=step, num_inference_steps=12)
            with torch.no_grad(), where:
                made.append(transformer(latents_of(branch, common), now, text, return_dict=False)[0])
    return torch.stack(made)


def both(step):
    return ("cond", "uncond")


def late(first):
    """A second branch that is not there from the start, nor on the last full step."""
    return lambda step: ("cond", "uncond") if step >= first and step != 9 else ("cond",)


def other(branch, common):
    return common if branch == "cond" else common + 0.5


def changed(branch, common):
    return common if branch == "cond" else common.add_(0.5)


@pytest.mark.parametrize(
    ("branches", "latents_of", "errors"),
    [
        (both, other, 16),
        (both, changed, 16),
        *((late(first), lambda branch, common: common, 8 + count) for first, count in ((1, 8), (4, 5), (5, 5))),
    ],
    ids=["others", "changed in place", "from an anchor", "from between", "from the last anchor"],
)
def test_what_is_not_the_same_is_computed(wan, seen, monkeypatch, branches, latents_of, errors):
    """Other latents, latents that were changed since, and anchors of other steps."""
    config, found = TapConfig(schedule=SCHEDULE), []
    for _ in range(2):
        transformer = wan.random_transformer()
        enable_tap(transformer, config)
        found.append(calls(transformer, branches=branches, latents_of=latents_of))
        without_twins(monkeypatch)
    assert torch.equal(*found)
    assert seen.count("proxy_error") == 2 * errors


def test_a_call_that_failed_may_be_tried_again(wan, monkeypatch):
    """It repeats the one that failed, and not the one before, whose probe is of other latents."""
    made = []
    for _ in range(2):
        transformer, fails = wan.random_transformer(), iter([False, False, False, True])
        enable_tap(transformer, TapConfig(schedule=SCHEDULE))

        def stumble(*_, fails=fails):
            if next(fails, False):
                raise KeyboardInterrupt

        transformer.blocks[1].register_forward_pre_hook(stumble)
        for step in range(9):
            chance = torch.Generator().manual_seed(step)
            for branch in ("cond", "uncond"):
                latents, now = torch.randn(1, 4, 2, 4, 4, generator=chance), torch.full((1,), 900.0 - step)
                for _attempt in range(2):
                    where = transformer.cache_context(branch, step_index=step, num_inference_steps=12)
                    with suppress(KeyboardInterrupt), torch.no_grad(), where:
                        made.append(transformer(latents, now, torch.ones(1, 6, 8), return_dict=False)[0])
                        break
        without_twins(monkeypatch)
    first, second = made[:18], made[18:]
    assert all(torch.equal(*both) for both in zip(first, second, strict=True))


def test_nothing_is_left_where_a_run_was_aborted(wan):
    """Though somebody holds on to the summary."""
    pipe = wan.random_pipeline()
    tap = enable_tap(pipe, TapConfig(schedule=SCHEDULE))
    with pytest.raises(KeyboardInterrupt):
        denoise_pipe(pipe, steps=12, callback_on_step_end=lambda _p, step, *_: {} if step < 5 else interrupt())
    hook = HookRegistry.check_if_exists_or_initialize(pipe.transformer).get_hook(HOOK_NAME)
    kept = [weakref.ref(tensor) for state in hook.states._state_cache.values() for tensor in state.branch.residuals]
    assert len(kept) == 2 * 3
    del hook
    tap.disable()
    gc.collect()
    assert [left() for left in kept] == [None] * 6
    assert tap.summary().full_steps == [0, 1, 5]


def interrupt():
    raise KeyboardInterrupt


def test_bytes_are_counted_once_and_known_before(wan):
    pipe, config = wan.random_pipeline(), TapConfig(schedule=SCHEDULE)
    tap = enable_tap(pipe, config)
    denoise_pipe(pipe, steps=12)
    stream = 3 * 12 * 32 * 4  # anchors x tokens x width x bytes
    assert tap.trace.state_bytes == {"cond": 2 * stream, "uncond": stream}
    kept = kept_on_this_rank(pipe.transformer, config, alone(), latent_size=(3, 4, 4), num_steps=12, branches=2)
    assert kept.anchors == 3 * stream
    for changes, streams in (({"probe": "block_output"}, 4), ({"family": "reuse"}, 2)):
        chosen = TapConfig(schedule=SCHEDULE, **changes)
        kept = kept_on_this_rank(pipe.transformer, chosen, alone(), latent_size=(3, 4, 4), num_steps=12, branches=2)
        assert kept.anchors == streams * stream


def test_errors_are_let_go_of_with_the_run(wan):
    pipe = wan.random_pipeline()
    enable_tap(pipe, TapConfig(schedule=SCHEDULE))
    hook = HookRegistry.check_if_exists_or_initialize(pipe.transformer).get_hook(HOOK_NAME)
    held = []
    denoise_pipe(pipe, steps=12, callback_on_step_end=lambda *_: held.append(hook.stack._before) or {})
    assert held[4].error is not None
    assert hook.stack._before is None


def test_a_call_is_repeated_by_the_very_same_tensors():
    last, latents, now = LastCall(), torch.ones(2), torch.ones(1)
    call = {"hidden_states": latents, "timestep": now, "return_dict": False}
    assert not last.is_repeated({**call, "encoder_hidden_states": torch.ones(3)})
    assert last.is_repeated({**call, "encoder_hidden_states": torch.zeros(3)})
    assert last.is_repeated(call)
    assert not last.is_repeated({**call, "timestep": now.clone()})
    assert not last.is_repeated(call)
    assert not last.is_repeated({**call, "fps": torch.ones(1)})
    last.is_repeated(call)
    latents.add_(1)
    assert [last.is_repeated(call) for _ in range(2)] == [False, True]


def test_arguments_within_others_count():
    last, scale = LastCall(), {"scale": 0.5, "shapes": [torch.ones(1)]}
    call = {"hidden_states": torch.ones(2), "attention_kwargs": scale}
    assert [last.is_repeated(call) for _ in range(2)] == [False, True]
    scale["scale"] = 1.0
    assert not last.is_repeated(call)
    scale["shapes"][0] = torch.ones(1)
    assert [last.is_repeated(call) for _ in range(2)] == [False, True]
    last.forget()
    assert not last.is_repeated(call)


def test_tensors_whose_changes_nobody_counts_are_no_repetition():
    last = LastCall()
    with torch.inference_mode():
        call = {"hidden_states": torch.ones(2)}
        assert [last.is_repeated(call) for _ in range(2)] == [False, False]


def test_only_a_twin_has_the_same():
    state, twin, step = BranchState(2), BranchState(2), StepContext("cond", 4, 12)
    probe, residual = torch.ones(1, 3, 2), torch.ones(1, 3, 2)
    state.push(4, 4.0, probe, residual)
    before = Before(step, state, torch.ones(1, 3, 5))
    again = StepContext("uncond", 4, 12, repeats=True)
    assert before.probe(again, twin) is probe
    assert before.errors(again, BranchState(2)) is None
    state.push(5, 5.0, probe, residual)
    twin.push(5, 5.0, probe, residual)
    assert before.errors(again, twin) is None  # it began later
    twin.trim(0)
    state.trim(0)
    state.push(4, 4.0, probe, residual)
    twin.push(4, 4.0, probe.clone(), residual)
    assert before.errors(again, twin) is None
    assert before.num_bytes(again, twin) == 0
    twin.probes[0] = probe
    assert before.errors(again, twin) is before.error
    assert before.num_bytes(again, twin) == probe.numel() * 4
    for context in (StepContext("uncond", 4, 12), StepContext("uncond", 5, 12, repeats=True)):
        assert before.probe(context, twin) is before.errors(context, twin) is None
    assert before.errors(again, state) is None
