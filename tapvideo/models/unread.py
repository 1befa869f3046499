"""Not computing what only the blocks would read, on steps on which none of them runs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Unread(nn.Module):
    """In the place of a projection of the text to the blocks' width: NaN of its shape, in the room of one number."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, text: Tensor) -> Tensor:
        """Whoever does read it after all makes NaN, which ends a run of the command line."""
        return text.new_full((1,), torch.nan).expand(*text.shape[:-1], self.width)


@contextmanager
def unread(transformer: nn.Module, path: str, width: int) -> Iterator[None]:
    """Leave a projection of the text out, for the length of a block.

    Args:
        transformer: the model.
        path: where in it the projection is.
        width: of what it makes.
    """
    parent, _, name = path.rpartition(".")
    owner = transformer.get_submodule(parent)
    original = getattr(owner, name)
    setattr(owner, name, Unread(width))
    try:
        yield
    finally:
        setattr(owner, name, original)
