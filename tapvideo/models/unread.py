"""Not computing what only the blocks would read on steps on which no block runs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tapvideo.models.alike import Shared, SharedAttention


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

    def stand_for(self, original: nn.Module) -> None:
        """Who is asked for all else; no child, since nobody looks for weights in it."""
        self.__dict__["original"] = original

    def __getattr__(self, name: str) -> Any:
        """Of the module in whose place this is: LTX-2 asks it for coordinates, too."""
        return getattr(self.__dict__.get("original"), name)

    def forward(self, like: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """As with the text, whoever reads them makes NaN, or fails for their size."""
        return like.new_full((1,), torch.nan), like.new_full((1,), torch.nan)


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
            owner, (*parents, name) = transformer, path.split(".")
            for parent in parents:
                owner = getattr(owner, parent)
            original = getattr(owner, name)
            places.append((owner, name, original))
            if isinstance(stand_in, Shared | SharedAttention | UnreadTables):
                stand_in.stand_for(original)
            _put(owner, name, stand_in)
        yield
    finally:
        for owner, name, original in places:
            _put(owner, name, original)


def _put(owner: nn.Module, name: str, module: nn.Module) -> None:
    """As `setattr`, which looks around among parameters and buffers first: on every step, as long as a norm takes."""
    if name in owner._modules:
        owner._modules[name] = module
    else:  # a module around another one, as `torch.compile` makes it, which passes on what is set
        setattr(owner, name, module)
