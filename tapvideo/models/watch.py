"""What goes into a transformer's blocks and what comes out, call by call, for diagnostics and for rules' own fits."""

import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, CacheContext, StateManager
from jaxtyping import Float
from torch import Tensor, nn

from tapvideo.models import adapter_for
from tapvideo.models.base import ModelAdapter
from tapvideo.models.branches import GUIDER_NAMES, TextBranches
from tapvideo.models.calls import largest_timestep

_HOOK_NAME = "tapvideo_watch"


@dataclass(frozen=True, slots=True)
class StackCall:
    """One pass of one branch through all blocks."""

    branch: str
    step: int
    sigma: float | None
    hidden: Float[Tensor, "b n d"]
    """Into block 0."""
    probe: Float[Tensor, "b n d"]
    """Modulated input of block 0."""
    output: Float[Tensor, "b n d"]
    """Out of the last block."""


OnCall = Callable[[StackCall], Tensor | None]
"""Is told of a pass through the blocks; may give other tokens to go on with."""


class NoState(BaseState):
    """For hooks that keep nothing and want only the context."""

    def reset(self) -> None:
        """Nothing to forget."""


class StepCounter:
    """Which step a call belongs to: as the pipeline tells, or counted by the calls of a branch."""

    def __init__(self, first: int = 0) -> None:
        """Where nobody tells, the first call of a branch is of step `first`."""
        self._first = first
        self._calls: dict[str, int] = {}

    def next(self, context: CacheContext) -> int:
        """The step of a call, asked once a call."""
        if context.step_index is not None:
            return context.step_index
        self._calls[context.name] = self._calls.get(context.name, self._first - 1) + 1
        return self._calls[context.name]

    def reset(self) -> None:
        """A run is over."""
        self._calls.clear()


def named_states(state: type[BaseState]) -> StateManager:
    """One state per `cache_context`; diffusers' annotation asks for an instance where it means the class."""
    return StateManager(cast(BaseState, state))


def original_forward(hook: ModelHook) -> Callable[..., Any]:
    """What a hook stands in front of, once it is registered."""
    return cast(Callable[..., Any], hook.fn_ref.original_forward)


class _Root(ModelHook):
    """On the transformer: which branch a call is of, where the pipeline does not say."""

    def __init__(self) -> None:
        super().__init__()
        self.texts = TextBranches()
        self.name: str | None = None

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        call = inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments
        text, timestep = call.get("encoder_hidden_states"), largest_timestep(call)
        self.name = None if text is None or timestep is None else self.texts.name(text, timestep)
        return args, kwargs


class _Head(ModelHook):
    _is_stateful = True  # so that the pipeline's context reaches it

    def __init__(self, adapter: ModelAdapter, root: _Root, first_step: int) -> None:
        super().__init__()
        self.adapter, self.root = adapter, root
        self.states = named_states(NoState)
        self.seen: tuple[Tensor, Tensor] | None = None
        self.steps, self.step = StepCounter(first_step), 0

    @property
    def context(self) -> CacheContext:
        """As TAP's own hook understands it."""
        told = self.states._context
        if told is not None:
            return replace(told, name=GUIDER_NAMES[told.name]) if told.name in GUIDER_NAMES else told
        return CacheContext(self.root.name) if self.root.name else self.states.context

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        self.step = self.steps.next(self.context)
        stream = self.adapter.stream(args, kwargs)
        self.seen = stream.hidden, self.adapter.modulated_input(module, stream)
        return args, kwargs

    def reset_state(self, module: nn.Module) -> nn.Module:
        self.steps.reset()
        return module


class _Tail(ModelHook):
    def __init__(self, head: _Head, on_call: OnCall) -> None:
        super().__init__()
        self.head, self.on_call = head, on_call

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        context = self.head.context
        assert self.head.seen is not None
        tokens, _ = self.head.adapter.read_result(output)
        others = self.on_call(StackCall(context.name, self.head.step, context.sigma, *self.head.seen, tokens))
        return output if others is None else _exchanged(output, tokens, others)


def _exchanged(output: Any, tokens: Tensor, others: Tensor) -> Any:
    """What a block gave out, with other tokens."""
    if output is tokens:
        return others
    if isinstance(output, tuple) and any(part is tokens for part in output):
        return tuple(others if part is tokens else part for part in output)
    raise ValueError("this model's last block gives out its tokens among others; they cannot be exchanged")


def blocks_of(transformer: nn.Module) -> list[nn.Module]:
    """All blocks, in the order they run.

    Raises:
        ValueError: if the model is not one that tapvideo knows.
    """
    return [block for name in adapter_for(transformer).block_lists for block in getattr(transformer, name)]


@contextmanager
def watched(transformer: nn.Module, on_call: OnCall, first_step: int = 0) -> Generator[None]:
    """Tells `on_call` of every pass through the blocks.

    Args:
        transformer: to watch.
        on_call: is told, and may give out what the head gets instead of the last block's tokens.
        first_step: with which this transformer begins, where another one makes those before.

    Raises:
        ValueError: if the model is not one that tapvideo knows.
    """
    blocks, root = blocks_of(transformer), _Root()
    head = _Head(adapter_for(transformer), root, first_step)
    hooks = {"": (transformer, root), "_head": (blocks[0], head), "_tail": (blocks[-1], _Tail(head, on_call))}
    with hooked(transformer, {f"{_HOOK_NAME}{name}": hook for name, hook in hooks.items()}):
        yield


@contextmanager
def hooked(transformer: nn.Module, hooks: dict[str, tuple[nn.Module, ModelHook]]) -> Generator[None]:
    """Hooks on a transformer's modules, by name, for the length of a block."""
    root = HookRegistry.check_if_exists_or_initialize(transformer)
    registered: list[tuple[nn.Module, str]] = []
    try:
        for name, (module, hook) in hooks.items():
            HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, name)
            registered.append((module, name))
        root.invalidate_child_registries_cache()
        yield
    finally:
        for module, name in reversed(registered):
            HookRegistry.check_if_exists_or_initialize(module).remove_hook(name, recurse=False)
        root.invalidate_child_registries_cache()
