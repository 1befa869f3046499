"""What the guidance branches of a step have in common, and whether a call is another branch's of the same step."""

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import ref

from torch import Tensor, nn

_ROOM = 1 << 25
"""Bytes; of larger latents the embedding is a small part of a forecast step, and the room is missed."""


class Alike:
    """What is made once for all branches of a step: stand-ins by their place in the model."""

    def __init__(self, places: Sequence[str] | None) -> None:
        self.shared = {place: Shared() for place in places or ()}
        self._last = None if places is None else LastCall()
        """None where branches have nothing in common, or only one of them is seen."""

    def is_repeated(self, call: Mapping[str, Any]) -> bool:
        """Whether a call is the one before it, but for the text; if not, what was made for that one is dropped."""
        repeats = self._last is not None and self._last.is_repeated(call)
        if not repeats:
            self.make_room()
        return repeats

    def make_room(self) -> None:
        """Drop what was made."""
        for shared in self.shared.values():
            shared.forget()

    def forget(self) -> None:
        """The step's other branches will not come."""
        self.make_room()
        if self._last is not None:
            self._last.forget()


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
