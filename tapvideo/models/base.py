"""What TAP must know of an architecture."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn


@runtime_checkable
class ModelAdapter(Protocol):
    """One diffusers transformer class: where its blocks are, its probe, and the grid its tokens lie on."""

    block_lists: tuple[str, ...]
    """Names of the transformer's lists of blocks, in the order they run; `TapStack` takes the place of the first."""

    def modulated_input(self, block: nn.Module, hidden: Float[Tensor, "b n d"], *args: Any) -> Float[Tensor, "b n d"]:
        """Input of block 0's attention, norm and modulation applied, in the dtype of `hidden`."""
        ...

    def token_grid(self, transformer: nn.Module, latents: Float[Tensor, "b c t h w"]) -> tuple[int, int, int]:
        """Frames, rows and columns of the tokens of these latents."""
        ...
