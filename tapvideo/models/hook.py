"""The diffusers hook that puts `TapStack` in a transformer's place of blocks for the length of a forward."""

import inspect
import logging
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, CacheContext, StateManager
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from tapvideo.config import TapConfig
from tapvideo.guard import Guard
from tapvideo.history import BranchState, StepContext
from tapvideo.models import adapter_for
from tapvideo.models.alike import Alike
from tapvideo.models.base import AttendsAlike, Call, EmbedsAlike, MakesTables, ProjectsText, SeesCalls
from tapvideo.models.branches import GUIDER_NAMES, TextBranches
from tapvideo.models.calls import given_tokens, largest_timestep, refuse_disk_offload
from tapvideo.models.clock import RunClock
from tapvideo.models.processors import Processors
from tapvideo.models.unread import UnreadTables, UnreadText, replaced
from tapvideo.parallel.attention import SequenceAttention, resolve
from tapvideo.parallel.guidance import BRANCHES, GuidanceExchange
from tapvideo.parallel.shard import TokenShard
from tapvideo.parallel.topology import Topology
from tapvideo.parallel.usp import UspAttention
from tapvideo.planning import read_calibration
from tapvideo.stack import TapStack
from tapvideo.trace import Trace

logger = logging.getLogger(__name__)

HOOK_NAME = "tapvideo"


class NamedState(BaseState):
    """A branch's state in the form that diffusers' `StateManager` keeps, one per `cache_context` name."""

    def __init__(self, depth: int) -> None:
        self.branch = BranchState(depth)
        self.run: int | None = None

    def reset(self) -> None:
        """Forget everything."""
        self.branch.reset()

    def enter(self, run: int) -> BranchState:
        """The branch's state in this run; what is left of another is dropped."""
        if self.run != run:
            self.branch.reset()
            self.run = run
        return self.branch


class StandIn(nn.ModuleList):
    """The blocks to whoever looks for modules (LoRA scaling does, inside a forward), `TapStack` to whoever iterates."""

    def __init__(self, blocks: nn.ModuleList, stacks: tuple[TapStack, ...]) -> None:
        super().__init__()
        self.__dict__["_modules"] = blocks._modules  # shared, not registered anew
        self.stacks = stacks

    def __iter__(self) -> Iterator[nn.Module]:
        """What the transformer's forward loops over."""
        return iter(self.stacks)


class GatherHook(ModelHook):
    """On the head: puts the ranks' projected tokens together, the only thing that a forecast step tells other ranks."""

    def __init__(self, stack: TapStack) -> None:
        super().__init__()
        self.stack = stack

    def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:
        """All tokens, in the order of the sequence."""
        return output if self.stack.gathers else self.stack.shard.gather_tokens(output, what="output")


class TapHook(ModelHook):
    """Root hook of a transformer: knows the step and the branch, swaps the blocks, leaves the rest to the model."""

    _is_stateful = True

    def __init__(self, transformer: nn.Module, config: TapConfig, clock: RunClock, topology: Topology) -> None:
        super().__init__()
        self.adapter = adapter_for(transformer)
        self.clock = clock
        self.trace = Trace()
        clock.traces.append(self.trace)
        first, *others = self.adapter.block_lists
        blocks = [block for name in self.adapter.block_lists for block in getattr(transformer, name)]
        layers = self.adapter.attentions(blocks)
        full, exchange = resolve(
            full=topology.config.attention, exchange=config.recompute.exchange, heads=layers[0].heads,
            ranks=topology.sp.size,
        )  # fmt: skip
        usp = None
        if full == "usp" and topology.sp.size > 1:
            usp = UspAttention(topology.sp, heads=layers[0].heads, ring=topology.config.ring)
        attention = SequenceAttention(topology.sp, full=full, exchange=exchange, usp=usp)
        shard = TokenShard(attention, layout=topology.config.layout)
        calibration = read_calibration(config) if config.guard else None
        guard = Guard(config, calibration, topology.cfg) if calibration is not None else None
        self.stack = TapStack(blocks, self.adapter, shard, config, self.trace, guard)
        self.guidance = GuidanceExchange(topology.cfg)
        self.processors = Processors(layers, self.adapter, attention)
        self.takes_over = config.recompute.budget > 0 or not shard.is_whole
        """Whether self-attention is ours: tokens of other ranks, or K/V of other steps, are to be seen."""
        self.states = StateManager(NamedState, init_kwargs={"depth": config.anchors})
        self.texts = TextBranches()
        self._stand_ins = {first: StandIn(getattr(transformer, first), (self.stack,))}
        self._stand_ins |= {name: StandIn(getattr(transformer, name), ()) for name in others}
        # asked once: looking through a protocol takes as long as a small model's norm
        self._sees = self.adapter if isinstance(self.adapter, SeesCalls) else None
        self._unread: dict[str, nn.Module] = {}
        if isinstance(self.adapter, ProjectsText):
            self._unread[self.adapter.text_projection] = UnreadText(layers[0].inner_dim)
        if isinstance(self.adapter, MakesTables) and shard.is_whole:  # or a rank takes its own tokens' rows of them
            self._unread |= {name: UnreadTables() for name in self.adapter.rotary}
        shares = isinstance(self.adapter, EmbedsAlike) and self.guidance.is_alone  # or this rank sees one branch alone
        attends = shares and isinstance(self.adapter, AttendsAlike) and not self.takes_over
        self._alike = Alike(
            self.adapter.alike if shares else None,
            (self.adapter.first_attention, self.adapter.processor_class) if attends else None,
        )
        self._signature = inspect.signature(type(transformer).forward)
        self._warned: set[str] = set()

    @torch.compiler.disable  # blocks may be compiled; the model whole, where somebody has, would not know of steps
    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The model's own forward around `TapStack`; as if TAP were off where the pipeline does not say where it is."""
        call = self._signature.bind(module, *args, **kwargs).arguments if args else kwargs
        timestep = call.get("timestep")
        if self._sees is not None:
            self._sees.see(module, call)
        grid = self.adapter.token_grid(module, self.adapter.latent_size(call))
        repeats = self._alike.is_repeated(module, call)
        if not repeats:
            self.stack.forget()  # what was found for other latents
        self.stack.call = self._locate(call, grid, repeats)
        self.stack.shard.enter(grid, call["hidden_states"].device)
        # The head modulates every token by its own timestep where there is one each, so it needs them all.
        self.stack.gathers = isinstance(timestep, Tensor) and timestep.ndim > 1
        try:
            with self._with_least(module, call, repeats):
                if self.guidance.is_alone:
                    return self._forward(module, args, kwargs)
                return self._one_branch(module, call, args, kwargs)
        finally:
            self.stack.call = None

    def _with_least(self, module: nn.Module, call: Call, repeats: bool) -> AbstractContextManager[None]:
        """What branches have in common is made once, and where no block will run, what only blocks read is not made."""
        others = len(self.states._state_cache) > 1
        if not self.stack.runs_no_block(len(call["hidden_states"])):
            return replaced(module, self._alike.attending(module, repeats=repeats, others=others))
        return replaced(module, self._unread | (self._alike.shared if others else {}))

    def _one_branch(self, module: nn.Module, call: Call, args: tuple, kwargs: dict[str, Any]) -> Any:
        """One guidance branch, here or on the ranks whose branch it is."""
        where = self.stack.call[0] if self.stack.call else None
        branch, step = (where.branch, where.step) if where else (None, -1)
        like = self.adapter.empty_output(module, call)
        result = self.guidance(branch, self.clock.run, step, like, lambda: self._forward(module, args, kwargs))
        if self.stack.call and branch != BRANCHES[self.guidance.comm.rank]:
            self.stack.call[1].num_calls += 1  # steps that are not told are counted, wherever they run
        plain = isinstance(result, tuple) and kwargs.get("return_dict", True)
        return Transformer2DModelOutput(sample=result[0]) if plain else result

    def _forward(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        with replaced(module, self._stand_ins):
            return self.fn_ref.original_forward(*args, **kwargs)

    def reset_state(self, module: nn.Module) -> nn.Module:
        """Forget all anchors, as pipelines ask for at the end of a run."""
        self.states.reset()
        self._forget()
        return module

    def release(self) -> None:
        """Let go of what takes room: another expert has taken over."""
        for state in self.states._state_cache.values():
            state.branch.release()
        self._forget()

    def _forget(self) -> None:
        """The step's other branches will not come."""
        self._alike.forget()
        self.stack.forget()

    def _locate(self, call: Call, grid: tuple[int, int, int], repeats: bool) -> tuple[StepContext, BranchState] | None:
        """Where the denoising loop stands, and the state of its branch; None where nobody tells."""
        told = self._told(call)
        if told is None:
            return self._give_up("no cache_context is set around the transformer's calls")
        num_steps = told.num_inference_steps or self.clock.num_steps_hint()
        if num_steps is None:
            return self._give_up("neither the cache_context nor a pipeline tells the number of steps")
        named, step = self._state(told), told.step_index
        if step is None:
            run, step = self.clock.counted((id(self), told.name), self._timestep(call), num_steps)
            state = named.enter(run)
        else:
            state = named.enter(self.clock.told((id(self), told.name), step, num_steps))
        if not 0 <= step < num_steps:
            return self._give_up(f"step {step} lies outside a run of {num_steps}")
        if state.num_calls == 0 and self.stack.reads_weights(num_steps):
            refuse_disk_offload(self.stack.blocks[0])
        self.clock.take_over(self.release)
        self.trace.grid = grid
        given = given_tokens(call, math.prod(grid))
        return StepContext(told.name, step, num_steps, told.sigma, given, repeats), state

    def _told(self, call: Call) -> CacheContext | None:
        """What the pipeline says of a call, or else what can be seen of it, if there is a pipeline."""
        told, text = self.states._context, call.get("encoder_hidden_states")
        if told is not None:
            return replace(told, name=GUIDER_NAMES[told.name]) if told.name in GUIDER_NAMES else told
        now = self._timestep(call) if self.clock.num_steps_hint() else None
        name = None if now is None or text is None else self.texts.name(text, now)
        return None if name is None else CacheContext(name)

    def _timestep(self, call: Call) -> float | None:
        """Such that it goes down in the course of a run."""
        timestep = largest_timestep(call)
        return None if timestep is None else self.clock.descending(timestep)

    def _state(self, told: CacheContext) -> NamedState:
        """Of a branch, whether the pipeline has named it or we have."""
        before = self.states._context
        self.states.set_context(told)
        try:
            return self.states.get_state()
        finally:
            self.states.set_context(before)

    def _give_up(self, reason: str) -> None:
        self.trace.clear()  # or a summary would tell of an earlier run
        if reason not in self._warned:
            self._warned.add(reason)
            logger.warning("tapvideo: not accelerating, because %s", reason)


def attach(transformer: nn.Module, config: TapConfig, clock: RunClock, topology: Topology) -> TapHook:
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
        raise ValueError("offloading is enabled already; call enable_tap before pipe.enable_model_cpu_offload()")
    hook = TapHook(transformer, config, clock, topology)
    if hook.takes_over:
        hook.processors.install()
    if not hook.stack.shard.is_whole:
        head = HookRegistry.check_if_exists_or_initialize(getattr(transformer, hook.adapter.head))
        head.register_hook(GatherHook(hook.stack), HOOK_NAME)
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
    hook = registry.get_hook(HOOK_NAME)
    assert isinstance(hook, TapHook)
    hook.reset_state(transformer)  # whoever holds on to the traces must not hold on to anchors
    hook.processors.restore()
    if not hook.stack.shard.is_whole:
        head = HookRegistry.check_if_exists_or_initialize(getattr(transformer, hook.adapter.head))
        head.remove_hook(HOOK_NAME, recurse=False)
    offloaded = transformer.forward if hasattr(transformer, "_old_forward") else None
    registry.remove_hook(HOOK_NAME, recurse=False)
    registry.invalidate_child_registries_cache()
    if offloaded is not None:  # accelerate wraps what was there when it came, which was our hook
        transformer._old_forward, transformer.forward = transformer.forward, offloaded
