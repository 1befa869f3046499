"""What the guidance branches of a step have in common, and whether a call is another branch's of the same step."""

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import ref

from torch import Tensor, nn

_ROOM = 1 << 25
"""Bytes; of larger latents the embedding is a small part of a forecast step, and the room is missed."""

_ATTENTION_ROOM = 1 << 28
"""Bytes; the first self-attention is a percent of a full step, for which no model's blocks shall run out of memory."""


class Alike:
    """What is made once for all branches of a step: stand-ins by their place in the model."""

    def __init__(self, places: Sequence[str] | None, attention: str | None = None) -> None:
        self.shared = {place: Shared() for place in places or ()}
        self._attention = None if attention is None else (attention, SharedAttention())
        self._last = None if places is None else LastCall()
        """None where branches have nothing in common, or only one of them is seen."""

    def is_repeated(self, call: Mapping[str, Any]) -> bool:
        """Whether a call is the one before it, but for the text; if not, what was made for that one is dropped."""
        repeats = self._last is not None and self._last.is_repeated(call)
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
        place, shared = self._attention
        block = transformer.get_submodule(place.rpartition(".")[0])
        if not (repeats or others) or _is_compiled(block) or not is_plain(transformer.get_submodule(place)):
            shared.forget()
            return {}
        shared.keeps = not repeats
        return {place: shared}

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
            self._attention[1].forget()


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

    Who uses it says before each call whether the call repeats the one before, by `forget` and `keeps`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.original: nn.Module = nn.Identity()
        """A child, as in `Shared`."""
        self.keeps = False
        """Whether this call's output is for another one."""
        self._kept: list[tuple[Any, Tensor, int]] = []

    def stand_for(self, original: nn.Module) -> None:
        """What runs, if something has to."""
        if original is not self.original:
            self.original = original
            self.forget()

    def forget(self) -> None:
        """The second branch will not come."""
        self._kept.clear()

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """What it made in the call before, if that was to be kept, and nobody has changed it, or who makes it."""
        processor = getattr(self.original, "processor", None)
        if self._kept:
            same, made, version = self._kept.pop()
            if same is processor and made._version == version:
                return made
        made = self.original(*args, **kwargs)
        if self.keeps and not made.is_inference() and _room(made) <= _ATTENTION_ROOM:
            self._kept.append((processor, made, made._version))
        return made


def is_plain(module: nn.Module) -> bool:
    """Whether nobody would miss a call: no hooks (which offload, or perturb for guidance), no LoRA, not compiled."""
    return not any(
        part._forward_hooks
        or part._forward_pre_hooks
        or _is_compiled(part)
        or any(hasattr(part, name) for name in ("_diffusers_hook", "_hf_hook", "base_layer"))
        for part in module.modules()
    )


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
