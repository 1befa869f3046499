"""Full-pass equivalents: FLOPs of what ran inside the transformer over those of one un-accelerated call.

Counting every operation would slow small models down by more than the methods under test speed them up. So the FLOPs
of each part (attention, cross-attention and feed-forward of every block; embeddings; head) are counted once for every
shape of input that it gets, some of the tokens for instance, and a run only notes which parts ran on what. The note is
taken innermost, below the hooks of whatever acceleration is on.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from tapvideo.models import ADAPTERS
from tapvideo.models.base import ProjectsText
from tapvideo.models.watch import original_forward

_HOOK_NAME = "tapvideo_flops"

Shapes = tuple[tuple[int, ...], ...]
"""Of all tensors that a part is given."""


@dataclass(slots=True)
class FlopLedger:
    """What has run since the last `clear`."""

    costs: dict[str, float]
    """FLOPs of every part on all tokens, by its name in the transformer."""
    per_call: float
    """FLOPs of one un-accelerated call."""
    known: dict[tuple[str, Shapes], float]
    """FLOPs of a part on inputs of these shapes."""
    flops: float = 0.0
    runs: dict[str, int] = field(default_factory=dict[str, int])
    """How often each part ran."""

    def clear(self) -> None:
        """Start anew."""
        self.flops = 0.0
        self.runs.clear()

    def note(self, part: str, shapes: Shapes) -> None:
        """A part runs; what it costs on these shapes is known."""
        self.flops += self.known[part, shapes]
        self.runs[part] = self.runs.get(part, 0) + 1

    def full_passes(self, branches: int) -> float:
        """Full-pass equivalents per guidance branch."""
        return self.flops / self.per_call / branches

    def share(self, *names: str) -> float:
        """Share of a full pass that parts with these first names take, e.g. `blocks`."""
        return sum(cost for part, cost in self.costs.items() if part.partition(".")[0] in names) / self.per_call


class _Note(ModelHook):
    """Tells the ledger that a part runs, and counts it where the ledger has not seen such inputs."""

    def __init__(self, ledger: FlopLedger, part: str) -> None:
        super().__init__()
        self.ledger, self.part = ledger, part

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The part's own forward, which a cache above may have left out."""
        shapes = shapes_of(args, kwargs)
        if (self.part, shapes) in self.ledger.known:
            self.ledger.note(self.part, shapes)
            return original_forward(self)(*args, **kwargs)
        with flop_counter() as counter:
            output = original_forward(self)(*args, **kwargs)
        self.ledger.known[self.part, shapes] = float(counter.get_total_flops())
        self.ledger.note(self.part, shapes)
        return output


def shapes_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Shapes:
    """Shapes of the tensors among arguments, in order."""
    return tuple(tuple(value.shape) for value in (*args, *kwargs.values()) if isinstance(value, Tensor))


def parts(transformer: nn.Module) -> dict[str, nn.Module]:
    """What a method may leave out: children of blocks, and whatever else the transformer has."""
    found: dict[str, nn.Module] = {}
    for name, child in transformer.named_children():
        if isinstance(child, nn.ModuleList):
            found |= {f"{name}.{i}.{sub}": m for i, block in enumerate(child) for sub, m in block.named_children()}
        else:
            found[name] = child
    adapter = ADAPTERS.get(type(transformer).__name__)
    if adapter and isinstance(own := adapter(), ProjectsText):  # which is left out where no block runs
        whole = own.text_projection.partition(".")[0]
        found |= {f"{whole}.{name}": part for name, part in found.pop(whole).named_children()}
    return found


def count_flops(transformer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> FlopLedger:
    """The ledger of a transformer for calls of this shape; runs one call."""
    shapes: dict[str, Shapes] = {}

    def see(part: str) -> Callable[..., None]:
        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            shapes.setdefault(part, shapes_of(args, kwargs))

        return note

    modules = parts(transformer)
    handles = [module.register_forward_pre_hook(see(name), with_kwargs=True) for name, module in modules.items()]
    try:
        with torch.no_grad(), flop_counter() as counter:
            transformer(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    by_module = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    root = type(transformer).__name__
    costs = {name: float(by_module.get(f"{root}.{name}", 0)) for name in modules}
    known = {(name, shapes[name]): cost for name, cost in costs.items() if name in shapes}
    costs = {name: cost for name, cost in costs.items() if cost}
    return FlopLedger(costs, float(counter.get_total_flops()), known)


def flop_counter() -> FlopCounterMode:
    """FLOPs as torch counts them, and of the CPU's fused attention, which it does not know."""
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    return FlopCounterMode(display=False, custom_mapping={fused: attention})


@contextmanager
def counting(transformer: nn.Module, ledger: FlopLedger) -> Generator[None]:
    """Notes in `ledger` what runs; enter it before any acceleration is switched on."""
    modules = {name: module for name, module in parts(transformer).items() if name in ledger.costs}
    for name, module in modules.items():
        HookRegistry.check_if_exists_or_initialize(module).register_hook(_Note(ledger, name), _HOOK_NAME)
    root = HookRegistry.check_if_exists_or_initialize(transformer)
    root.invalidate_child_registries_cache()
    try:
        yield
    finally:
        for module in modules.values():
            HookRegistry.check_if_exists_or_initialize(module).remove_hook(_HOOK_NAME, recurse=False)
        root.invalidate_child_registries_cache()


def first_call(transformer: nn.Module) -> "Captured":
    """Keeps the arguments of the next call; use as a context."""
    return Captured(transformer)


class Captured:
    """Arguments of the first call inside a `with` block, and the number of calls."""

    def __init__(self, transformer: nn.Module) -> None:
        self._transformer = transformer
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self.calls = 0

    def __enter__(self) -> "Captured":
        self._handle = self._transformer.register_forward_pre_hook(self._see, with_kwargs=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.calls == 0:
            self.args = tuple(_kept(a) for a in args)
            self.kwargs = {name: _kept(value) for name, value in kwargs.items()}
        self.calls += 1


def _kept(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
