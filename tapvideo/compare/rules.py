"""TeaCache- and EasyCache-style rules, written from the papers' descriptions; both reuse, and differ in when.

TeaCache (arXiv 2411.19108): while the change of the modulated input since the last full step, mapped to a change of the
output by a polynomial fitted beforehand, adds up to less than a threshold, the stack's last residual is used again.
EasyCache (arXiv 2507.02860): the whole call is left out, and its output taken as input plus the last difference, while
rate x change of the input, in units of the output, adds up to less than a threshold. The rate, change of the output
over change of the input, is measured on full steps; so nothing has to be fitted beforehand.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from diffusers.hooks import ModelHook
from diffusers.hooks.hooks import BaseState
from torch import Tensor, nn

from tapvideo.compare.methods import Bench, Knob, Method, NotPossible, Settings, Variant
from tapvideo.config import GenerateConfig
from tapvideo.models import adapter_for
from tapvideo.models.watch import StackCall, StepCounter, blocks_of, hooked, named_states, original_forward, watched

_THRESHOLD = Knob("threshold", low=1e-3, high=10.0)
_DEGREE = 4


def rule_methods() -> list[Method]:
    """Both rules."""
    return [
        Method("rule-teacache", "TeaCache's rule", _warm_variants, _teacache, calibrate=fit_polynomial),
        Method("rule-easycache", "EasyCache's rule", _warm_variants, _easycache),
    ]


def _warm_variants(bench: Bench, target: float) -> list[Variant]:
    """Few or many full steps at the start, as far as the budget allows."""
    most = int(target) - 2
    return [Variant({"warmup": w}, _THRESHOLD) for w in (1, 5, 10) if w == 1 or w < most]


def relative_change(new: Tensor, old: Tensor) -> float:
    """Mean absolute change over the mean absolute old value."""
    return ((new - old).abs().mean() / old.abs().mean()).item()


def must_be_full(step: int, num_steps: int, warmup: int) -> bool:
    """The first steps and the last one."""
    return step < warmup or step == num_steps - 1


def fit_polynomial(bench: Bench, run: Callable[[], None]) -> Settings:
    """Coefficients, highest first, that map changes of the modulated input to changes of the stack's output."""
    last: dict[str, StackCall] = {}
    pairs: list[tuple[float, float]] = []

    def see(call: StackCall) -> None:
        before = last.get(call.branch)
        if before is not None and call.step == before.step + 1:
            pairs.append((relative_change(call.probe, before.probe), relative_change(call.output, before.output)))
        last[call.branch] = call

    with watched(bench.pipe.transformer, see):
        run()
    if len(pairs) <= _DEGREE:
        raise NotPossible(f"{len(pairs)} steps are too few to fit its polynomial")
    inputs, outputs = np.array(pairs).T
    return {"polynomial": np.polyfit(inputs, outputs, _DEGREE).tolist()}


class _TeaState(BaseState):
    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the run."""
        self.probe: Tensor | None = None
        self.hidden: Tensor | None = None
        self.residual: Tensor | None = None
        self.change = 0.0
        self.skips = False


class _TeaFirst(ModelHook):
    """On block 0: decides."""

    _is_stateful = True

    def __init__(self, bench: Bench, settings: Settings) -> None:
        super().__init__()
        self.adapter, self.settings = adapter_for(bench.pipe.transformer), settings
        self.states = named_states(_TeaState)
        self.steps, self.num_steps = StepCounter(), bench.config.steps

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        state: _TeaState = self.states.get_state()
        stream = self.adapter.stream(args, kwargs)
        probe = self.adapter.modulated_input(module, stream)
        state.skips = not self._is_full(state, probe)
        state.probe, state.hidden = probe, stream.hidden
        if state.skips and state.residual is not None:
            return self.adapter.result(replace(stream, hidden=stream.hidden + state.residual))
        return original_forward(self)(*args, **kwargs)

    def _is_full(self, state: _TeaState, probe: Tensor) -> bool:
        if state.probe is not None:
            change = relative_change(probe, state.probe)
            state.change += max(0.0, float(np.polyval(self.settings["polynomial"], change)))
        full = state.residual is None or state.change >= self.settings["threshold"]
        full |= must_be_full(self.steps.next(self.states.context), self.num_steps, self.settings["warmup"])
        if full:
            state.change = 0.0
        return full

    def reset_state(self, module: nn.Module) -> nn.Module:
        self.states.reset()
        self.steps.reset()
        return module


class _TeaNext(ModelHook):
    """On the other blocks: follows."""

    def __init__(self, first: _TeaFirst, *, is_last: bool) -> None:
        super().__init__()
        self.first, self.is_last = first, is_last

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        state: _TeaState = self.first.states.get_state()
        if state.skips:
            return self.first.adapter.result(self.first.adapter.stream(args, kwargs))
        output = original_forward(self)(*args, **kwargs)
        if self.is_last and state.hidden is not None:
            state.residual = self.first.adapter.read_result(output)[0] - state.hidden
        return output


@contextmanager
def _teacache(bench: Bench, settings: Settings) -> Generator[GenerateConfig]:
    blocks = blocks_of(bench.pipe.transformer)
    if len(blocks) < 2:
        raise NotPossible("this rule's hooks need a model of two blocks or more")
    first = _TeaFirst(bench, settings)
    hooks: dict[str, tuple[nn.Module, ModelHook]] = {"teacache_0": (blocks[0], first)}
    for i, block in enumerate(blocks[1:], start=1):
        hooks[f"teacache_{i}"] = (block, _TeaNext(first, is_last=i == len(blocks) - 1))
    with hooked(bench.pipe.transformer, hooks):
        yield bench.config


class _EasyState(BaseState):
    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the run."""
        self.latents: Tensor | None = None
        self.output: Tensor | None = None
        self.difference: Tensor | None = None
        self.full_latents: Tensor | None = None
        self.full_output: Tensor | None = None
        self.rate: float | None = None
        self.change = 0.0


class _Easy(ModelHook):
    """On the whole transformer; the first branch of a step decides for all."""

    _is_stateful = True

    def __init__(self, bench: Bench, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.states = named_states(_EasyState)
        self.steps, self.num_steps = StepCounter(), bench.config.steps
        self.decided_step: int | None = None
        self.is_full = True

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        state, step = self.states.get_state(), self.steps.next(self.states.context)
        latents = args[0] if args else kwargs["hidden_states"]
        if self.decided_step != step:
            self.decided_step, self.is_full = step, self._is_full(state, latents, step)
        if self.is_full or state.difference is None or kwargs.get("return_dict", True):
            result = original_forward(self)(*args, **kwargs)
            self._learn(state, latents, result[0])
        else:
            result = (latents + state.difference,)
        state.latents, state.output = latents, result[0]
        return result

    def _is_full(self, state: _EasyState, latents: Tensor, step: int) -> bool:
        if state.rate is not None and state.latents is not None and state.output is not None:
            state.change += state.rate * ((latents - state.latents).abs().mean() / state.output.abs().mean()).item()
        full = state.rate is None or state.change >= self.settings["threshold"]
        full |= must_be_full(step, self.num_steps, self.settings["warmup"])
        if full:
            state.change = 0.0
        return full

    def _learn(self, state: _EasyState, latents: Tensor, output: Tensor) -> None:
        """The rate between this full step and the one before it."""
        if state.full_latents is not None and state.full_output is not None:
            moved = (latents - state.full_latents).abs().mean()
            state.rate = ((output - state.full_output).abs().mean() / moved).item()
        state.full_latents, state.full_output, state.difference = latents, output, output - latents

    def reset_state(self, module: nn.Module) -> nn.Module:
        self.states.reset()
        self.steps.reset()
        self.decided_step = None
        return module


@contextmanager
def _easycache(bench: Bench, settings: Settings) -> Generator[GenerateConfig]:
    transformer = bench.pipe.transformer
    with hooked(transformer, {"easycache": (transformer, _Easy(bench, settings))}):
        yield bench.config
