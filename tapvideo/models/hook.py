"""The diffusers hook that puts `TapStack` in a transformer's place of blocks for the length of a forward."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, CacheContext, StateManager
from torch import Tensor, nn

from tapvideo.config import TapConfig
from tapvideo.history import BranchState
from tapvideo.models import adapter_for
from tapvideo.stack import StepContext, TapStack
from tapvideo.trace import Trace

logger = logging.getLogger(__name__)

HOOK_NAME = "tapvideo"


class NamedState(BaseState):
    """A branch's state in the form that diffusers' `StateManager` keeps, one per `cache_context` name."""

    def __init__(self, depth: int) -> None:
        self.branch = BranchState(depth)
        self.last_timestep: float | None = None

    def reset(self) -> None:
        """Forget everything."""
        self.branch.reset()
        self.last_timestep = None


class TapHook(ModelHook):
    """Root hook of a transformer: knows the step and the branch, swaps the blocks, leaves the rest to the model."""

    _is_stateful = True

    def __init__(self, transformer: nn.Module, config: TapConfig, num_steps_hint: Callable[[], int | None]) -> None:
        super().__init__()
        self.adapter = adapter_for(transformer)
        self.trace = Trace()
        blocks = [block for name in self.adapter.block_lists for block in getattr(transformer, name)]
        self.stack = TapStack(blocks, self.adapter.modulated_input, config, self.trace)
        self.states = StateManager(NamedState, init_kwargs={"depth": config.anchors})
        self._num_steps_hint = num_steps_hint
        self._stand_in = nn.ModuleList([self.stack])
        self._warned: set[str] = set()

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The model's own forward around `TapStack`; as if TAP were off where the pipeline does not say where it is."""
        latents = args[0] if args else kwargs["hidden_states"]
        timestep = args[1] if len(args) > 1 else kwargs.get("timestep")
        with self._swapped(module, self._step_context(latents, timestep, module)):
            return self.fn_ref.original_forward(*args, **kwargs)

    def reset_state(self, module: nn.Module) -> nn.Module:
        """Forget all anchors, as pipelines ask for at the end of a run."""
        self.states.reset()
        return module

    @contextmanager
    def _swapped(self, module: nn.Module, context: StepContext | None) -> Iterator[None]:
        first, *others = self.adapter.block_lists
        originals = {name: getattr(module, name) for name in self.adapter.block_lists}
        self.stack.context = context
        self.stack.state = self.states.get_state().branch if context else None
        try:
            setattr(module, first, self._stand_in)
            for name in others:
                setattr(module, name, nn.ModuleList())
            yield
        finally:
            for name, original in originals.items():
                setattr(module, name, original)
            self.stack.context = self.stack.state = None

    def _step_context(self, latents: Tensor, timestep: Tensor | None, module: nn.Module) -> StepContext | None:
        told = self.states._context
        if told is None:
            return self._give_up("context", "no cache_context is set around the transformer's calls")
        state = self.states.get_state()
        num_steps = told.num_inference_steps or self._num_steps_hint()
        if num_steps is None:
            return self._give_up("steps", "neither the cache_context nor a pipeline tells the number of steps")
        step = self._step_index(told, state, timestep)
        if not 0 <= step < num_steps:
            return self._give_up("range", f"step {step} lies outside a run of {num_steps}")
        if state.branch.last_step is not None and step <= state.branch.last_step:
            state.reset()  # the last run ended early, by an exception or by its caller
        if state.branch.num_calls == 0 and any(r.branch == told.name for r in self.trace.records):
            self.trace.clear()
        self.trace.grid = self.adapter.token_grid(module, latents)
        return StepContext(told.name, step, num_steps, told.sigma)

    def _step_index(self, told: CacheContext, state: NamedState, timestep: Tensor | None) -> int:
        """The step that the pipeline tells, else the count of calls since timesteps last went up."""
        if told.step_index is not None:
            return told.step_index
        if timestep is not None:
            now = float(timestep.max())
            if state.last_timestep is not None and now >= state.last_timestep:
                state.reset()
            state.last_timestep = now
        return state.branch.num_calls

    def _give_up(self, key: str, reason: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            logger.warning("tapvideo: not accelerating, because %s", reason)


def attach(transformer: nn.Module, config: TapConfig, num_steps_hint: Callable[[], int | None]) -> TapHook:
    """Register a `TapHook`.

    Raises:
        ValueError: if TAP or a cache of diffusers is on already, the model is not supported, or accelerate's offloading
            was set up first (its clean-up after every run would silently drop the hook).
    """
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    if registry.get_hook(HOOK_NAME) is not None:
        raise ValueError("TAP is enabled on this transformer already; call disable() on what enable_tap returned first")
    if getattr(transformer, "is_cache_enabled", False):
        raise ValueError("a cache of diffusers is enabled on this transformer; call transformer.disable_cache() first")
    if hasattr(transformer, "_hf_hook"):
        raise ValueError("model offloading is enabled already; call enable_tap before pipe.enable_model_cpu_offload()")
    hook = TapHook(transformer, config, num_steps_hint)
    registry.register_hook(hook, HOOK_NAME)
    registry.invalidate_child_registries_cache()
    return hook


def detach(transformer: nn.Module) -> None:
    """Remove the `TapHook`; the transformer is as it was.

    Raises:
        ValueError: if there is none.
    """
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    if registry.get_hook(HOOK_NAME) is None:
        raise ValueError("TAP is not enabled on this transformer")
    offloaded = transformer.forward if hasattr(transformer, "_old_forward") else None
    registry.remove_hook(HOOK_NAME, recurse=False)
    registry.invalidate_child_registries_cache()
    if offloaded is not None:  # accelerate wraps what was there when it came, which was our hook
        transformer._old_forward, transformer.forward = transformer.forward, offloaded
