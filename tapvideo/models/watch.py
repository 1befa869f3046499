"""What goes into a transformer's blocks and what comes out, call by call, for diagnostics and for rules' own fits."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, CacheContext, StateManager
from jaxtyping import Float
from torch import Tensor, nn

from tapvideo.models import adapter_for
from tapvideo.models.base import ModelAdapter

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


class NoState(BaseState):
    """For hooks that keep nothing and want only the context."""

    def reset(self) -> None:
        """Nothing to forget."""


class StepCounter:
    """Which step a call belongs to: as the pipeline tells, or counted by the calls of a branch."""

    def __init__(self) -> None:
        self._calls: dict[str, int] = {}

    def next(self, context: CacheContext) -> int:
        """The step of a call, asked once a call."""
        if context.step_index is not None:
            return context.step_index
        self._calls[context.name] = self._calls.get(context.name, -1) + 1
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


class _Head(ModelHook):
    _is_stateful = True  # so that the pipeline's context reaches it

    def __init__(self, adapter: ModelAdapter) -> None:
        super().__init__()
        self.adapter = adapter
        self.states = named_states(NoState)
        self.seen: tuple[Tensor, Tensor] | None = None
        self.steps, self.step = StepCounter(), 0

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        self.step = self.steps.next(self.states.context)
        stream = self.adapter.stream(args, kwargs)
        self.seen = stream.hidden, self.adapter.modulated_input(module, stream)
        return args, kwargs

    def reset_state(self, module: nn.Module) -> nn.Module:
        self.steps.reset()
        return module


class _Tail(ModelHook):
    def __init__(self, head: _Head, on_call: Callable[[StackCall], None]) -> None:
        super().__init__()
        self.head, self.on_call = head, on_call

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        context = self.head.states.context
        assert self.head.seen is not None
        tokens, _ = self.head.adapter.read_result(output)
        self.on_call(StackCall(context.name, self.head.step, context.sigma, *self.head.seen, tokens))
        return output


def blocks_of(transformer: nn.Module) -> list[nn.Module]:
    """All blocks, in the order they run.

    Raises:
        ValueError: if the model is not one that tapvideo knows.
    """
    return [block for name in adapter_for(transformer).block_lists for block in getattr(transformer, name)]


@contextmanager
def watched(transformer: nn.Module, on_call: Callable[[StackCall], None]) -> Generator[None]:
    """Tells `on_call` of every pass through the blocks.

    Raises:
        ValueError: if the model is not one that tapvideo knows.
    """
    blocks = blocks_of(transformer)
    head = _Head(adapter_for(transformer))
    with hooked(transformer, {_HOOK_NAME: (blocks[0], head), f"{_HOOK_NAME}_tail": (blocks[-1], _Tail(head, on_call))}):
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
