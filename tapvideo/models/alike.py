"""What the guidance branches of a step have in common, and whether a call is another branch's of the same step."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

_ROOM = 1 << 25
"""Bytes; of larger latents the embedding is a small part of a forecast step, and the room is missed."""

_ATTENTION_ROOM = 1 << 28
"""Bytes; the first self-attention is a percent of a full step, for which no model's blocks shall run out of memory."""


class Alike:
    """What is made once for all branches of a step: stand-ins by their place in the model."""

    def __init__(self, places: Sequence[str] | None, attention: tuple[str, type] | None = None) -> None:
        """Of places in the model; `attention`, if any, with the class of its processor."""
        self.shared = {place: Shared() for place in places or ()}
        self._attention = None if attention is None else (*attention, SharedAttention())
        self._last = None if places is None else LastCall()
        """None where branches have nothing in common, or only one of them is seen."""
        self._touches: list[Any] = []
        """What the last call had put onto the places."""

    def is_repeated(self, transformer: nn.Module, call: Mapping[str, Any]) -> bool:
        """Whether a call is the one before it, but for the text; if not, what was made for that one is dropped."""
        before, self._touches = self._touches, [_touches(transformer.get_submodule(place)) for place in self.shared]
        repeats = self._last is not None and self._last.is_repeated(call) and self._touches == before
        if not repeats:
            self._drop()
        return repeats

    def attending(self, transformer: nn.Module, *, repeats: bool, others: bool) -> Mapping[str, nn.Module]:
        """What stands in a full step's transformer, so that its branches have one first self-attention.

        Args:
            transformer: the model.
            repeats: whether the coming call is the one before it, but for the text.
            others: whether other branches may come.
        """
        self.make_room()
        if self._attention is None:
            return {}
        place, processor, shared = self._attention
        if (repeats or others) and self._can_share(transformer, place, processor):
            shared.keeps = not repeats
            return {place: shared}
        shared.forget()
        return {}

    def _can_share(self, transformer: nn.Module, place: str, processor: type) -> bool:
        block, attention = transformer.get_submodule(place.rpartition(".")[0]), transformer.get_submodule(place)
        known = type(getattr(attention, "processor", None)) is processor  # another may have a memory
        return known and not _is_compiled(block) and is_plain(attention)

    def make_room(self) -> None:
        """Drop the embeddings that were made, which are little to make again, and much among blocks."""
        for shared in self.shared.values():
            shared.forget()

    def forget(self) -> None:
        """The step's other branches will not come."""
        self._drop()
        if self._last is not None:
            self._last.forget()

    def _drop(self) -> None:
        self.make_room()
        if self._attention is not None:
            self._attention[-1].forget()


class Shared(nn.Module):
    """In the place of a module that gets the same from both guidance branches of a step: it runs once.

    What it made is kept until the second branch has asked for it, or until `forget`, for which whoever knows the whole
    call must see when another one follows; not where it takes much room.
    """

    def __init__(self) -> None:
        super().__init__()
        self.original: nn.Module = nn.Identity()
        """A child, since LoRA's scale of a call looks for its layers within the forward."""
        self._kept: list[tuple[Tensor, int, Any]] = []
        """One at most: a list, since a module takes its time to set what it has."""

    def stand_for(self, original: nn.Module) -> None:
        """What runs, if something has to."""
        if original is not self.original:
            self.original = original

    def forget(self) -> None:
        """The second branch will not come."""
        self._kept.clear()

    def forward(self, given: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What was made of the very same tensor, unless it was changed since; of the rest, blocks alone read it."""
        kept = self._kept.pop() if self._kept else None
        if given.is_inference():  # whose changes nobody counts
            return self.original(given, *args, **kwargs)
        if kept is not None and kept[0] is given and kept[1] == given._version:
            return kept[2]
        made = self.original(given, *args, **kwargs)
        if kept is None and _room(made) <= _ROOM:  # or this is the second branch, and gets something else
            self._kept.append((given, given._version, made))
        return made


class SharedAttention(nn.Module):
    """In the place of a self-attention that comes before any look at the text: both guidance branches have its output.

    Whether the second one gets the same is not concluded from what comes before, which hooks, LoRA and others may make
    differ, but seen. Who uses it says before each call whether it is the first one, by `keeps`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.original: nn.Module = nn.Identity()
        """A child, as in `Shared`."""
        self.keeps = False
        """Whether this call's output is for another one."""
        self._kept: list[_Attended] = []

    def stand_for(self, original: nn.Module) -> None:
        """What runs, if something has to."""
        if original is not self.original:
            self.original = original
            self.forget()

    def forget(self) -> None:
        """The second branch will not come."""
        self._kept.clear()

    def forward(self, *given: Any) -> Tensor:
        """What was made in the call before, of equal tensors and by the same weights in the same way."""
        how = _how(self.original, given[0])
        if self._kept:
            kept = self._kept.pop()
            if kept.how == how and _equal(kept.given, given) and kept.made._version == kept.version:
                return kept.made
        made = self.original(*given)
        if self.keeps and not made.is_inference() and _room((given[0], made)) <= _ATTENTION_ROOM:
            self._kept.append(_Attended(how, given, made, made._version))
        return made


@dataclass(frozen=True, slots=True)
class _Attended:
    how: Any
    given: tuple[Any, ...]
    made: Tensor
    version: int


def _how(attention: nn.Module, hidden: Tensor) -> tuple[Any, ...]:
    """All but its arguments that decides what an attention makes."""
    processor, device = getattr(attention, "processor", None), hidden.device.type
    casts = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    weights = [(weight.data_ptr(), weight._version) for weight in attention.parameters()]
    return id(processor), getattr(processor, "_attention_backend", None), casts, weights


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, tuple):
        return isinstance(other, tuple) and len(one) == len(other) and all(map(_equal, one, other))
    return one is other


def is_plain(module: nn.Module) -> bool:
    """Whether nobody would miss a call, or have it do something else: hooks, LoRA, dropout, compilers, gradients."""
    return not torch.is_grad_enabled() and not any(
        part.training
        or part._forward_hooks
        or part._forward_pre_hooks
        or "forward" in vars(part)
        or _is_compiled(part)
        or any(hasattr(part, name) for name in ("_diffusers_hook", "_hf_hook", "base_layer"))
        or any(weight.is_inference() for weight in part.parameters(recurse=False))
        for part in module.modules()
    )


def _touches(module: nn.Module) -> list[Any]:
    """What may be on for one branch alone, and make something else of the same: hooks, LoRA, a forward of its own."""
    own, parts = vars(module), module._modules
    found: list[Any] = [*own["_forward_hooks"], *own["_forward_pre_hooks"]]  # by numbers that are not given out again
    if "forward" in own:
        found.append(own["forward"])  # itself: its place in memory may be another's soon
    if "base_layer" in parts:
        names = ("disable_adapters", "active_adapters", "scaling")
        found.append([copy(getattr(module, name, None)) for name in names])
    for part in parts.values():  # `modules` names them too, which takes as long again
        if part is not None:
            found += _touches(part)
    return found


def _is_compiled(module: nn.Module) -> bool:
    """Whether another module in it would be compiled anew."""
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None


class LastCall:
    """The arguments of a transformer's last call but its text, to tell whether the next one gets the very same."""

    def __init__(self) -> None:
        self._arguments: dict[str, Any] = {}

    def forget(self) -> None:
        """The next call repeats none."""
        self._arguments = {}

    def is_repeated(self, call: Mapping[str, Any]) -> bool:
        """Whether this call's are those, unchanged; from now on it is the last one."""
        given = {name: value for name, value in call.items() if not name.startswith("encoder_")}
        before, self._arguments = self._arguments, _mark(given)
        return _is(given, before)


def _mark(value: Any) -> Any:
    """What tells a value from others later, and keeps no tensor."""
    if isinstance(value, Tensor):
        return None if value.is_inference() else (ref(value), value._version)  # nobody counts changes of the former
    if isinstance(value, Mapping):
        return {name: _mark(part) for name, part in value.items()}
    return [_mark(part) for part in value] if isinstance(value, list | tuple) else value


def _is(value: Any, mark: Any) -> bool:
    if isinstance(value, Tensor):
        return isinstance(mark, tuple) and mark[0]() is value and mark[1] == value._version
    if isinstance(value, Mapping):
        return isinstance(mark, dict) and value.keys() == mark.keys() and all(_is(value[n], mark[n]) for n in value)
    if isinstance(value, list | tuple):
        return isinstance(mark, list) and len(value) == len(mark) and all(map(_is, value, mark))
    return value is mark


def _room(made: Any) -> int:
    """Bytes of a tensor, or of several."""
    parts = made if isinstance(made, tuple) else (made,)
    return sum(part.untyped_storage().nbytes() for part in parts if isinstance(part, Tensor))
