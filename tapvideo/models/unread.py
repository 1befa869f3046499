"""Not computing what only the blocks would read, nor anything twice, on steps on which no block runs."""

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_ROOM = 1 << 25
"""Bytes; of larger latents the embedding is a small part of a forecast step, and the room is missed."""


class UnreadText(nn.Module):
    """In the place of a projection of the text to the blocks' width: NaN of its shape, in the room of one number."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, text: Tensor) -> Tensor:
        """Whoever does read it after all makes NaN, which ends a run of the command line."""
        return text.new_full((1,), torch.nan).expand(*text.shape[:-1], self.width)


class UnreadTables(nn.Module):
    """In the place of what makes rotary tables: a NaN for cosines and one for sines."""

    def forward(self, like: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """As with the text, whoever reads them makes NaN, or fails for their size."""
        return like.new_full((1,), torch.nan), like.new_full((1,), torch.nan)


class Shared(nn.Module):
    """In the place of a module that gets the same from both guidance branches of a step: it runs once.

    What it made is kept until the second branch has asked for it, or until `forget`; not where it takes much room.
    """

    def __init__(self) -> None:
        super().__init__()
        self.original: nn.Module = nn.Identity()
        """A child, since LoRA's scale of a call looks for its layers within the forward."""
        self._kept: tuple[Tensor, int, Any] | None = None

    def stand_for(self, original: nn.Module) -> None:
        """What runs, if something has to."""
        if original is not self.original:
            self.original = original

    def forget(self) -> None:
        """The second branch will not come."""
        self._kept = None

    def forward(self, given: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What was made of the very same tensor, unless it was changed since; of the rest, blocks alone read it."""
        kept, self._kept = self._kept, None
        if given.is_inference():  # whose changes nobody counts
            return self.original(given, *args, **kwargs)
        if kept is not None and kept[0] is given and kept[1] == given._version:
            return kept[2]
        made = self.original(given, *args, **kwargs)
        if kept is None and _room(made) <= _ROOM:  # or this is the second branch, and gets something else
            self._kept = given, given._version, made
        return made


class LastCall:
    """The arguments of a transformer's last call but its text, to tell whether the next one gets the very same."""

    def __init__(self) -> None:
        self._arguments: dict[str, tuple[weakref.ref[Tensor], int] | Any] = {}

    def is_repeated(self, call: Mapping[str, Any]) -> bool:
        """Whether this call's are those, unchanged; from now on it is the last one."""
        before, self._arguments = self._arguments, {}
        given = {name: value for name, value in call.items() if not name.startswith("encoder_")}
        if any(isinstance(value, Tensor) and value.is_inference() for value in given.values()):
            return False  # nobody counts changes of these
        self._arguments = {name: _mark(value) for name, value in given.items()}
        return before.keys() == given.keys() and all(_is(value, before[name]) for name, value in given.items())


def _mark(value: Any) -> Any:
    return (weakref.ref(value), value._version) if isinstance(value, Tensor) else value


def _is(value: Any, mark: Any) -> bool:
    if not isinstance(value, Tensor):
        return value is mark
    return isinstance(mark, tuple) and mark[0]() is value and mark[1] == value._version


def _room(made: Any) -> int:
    """Bytes of a tensor, or of several."""
    parts = made if isinstance(made, tuple) else (made,)
    return sum(part.untyped_storage().nbytes() for part in parts if isinstance(part, Tensor))


@contextmanager
def replaced(transformer: nn.Module, stand_ins: Mapping[str, nn.Module]) -> Iterator[None]:
    """Other modules in the place of a model's own, for the length of a block.

    Args:
        transformer: the model.
        stand_ins: by their place in the model; what lies inside of another one comes before it.
    """
    places: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for path, stand_in in stand_ins.items():
            parent, _, name = path.rpartition(".")
            owner = transformer.get_submodule(parent)
            original = getattr(owner, name)
            places.append((owner, name, original))
            if isinstance(stand_in, Shared):
                stand_in.stand_for(original)
            setattr(owner, name, stand_in)
        yield
    finally:
        for owner, name, original in places:
            setattr(owner, name, original)
