"""What TAP must know of an architecture."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int64
from torch import Tensor, nn

from tapvideo.parallel.attention import SequenceAttention


@runtime_checkable
class ModelAdapter(Protocol):
    """One diffusers transformer class: where its blocks are, its probe, and the grid its tokens lie on."""

    block_lists: tuple[str, ...]
    """Names of the transformer's lists of blocks, in the order they run; `TapStack` takes the place of the first."""

    head: str
    """Name of the module that projects the stack's output to latents: its output is what ranks gather."""

    def modulated_input(self, block: nn.Module, hidden: Float[Tensor, "b n d"], *args: Any) -> Float[Tensor, "b n d"]:
        """Input of block 0's attention, norm and modulation applied, in the dtype of `hidden`."""
        ...

    def token_grid(self, transformer: nn.Module, latents: Float[Tensor, "b c t h w"]) -> tuple[int, int, int]:
        """Frames, rows and columns of the tokens of these latents."""
        ...

    def empty_output(self, transformer: nn.Module, latents: Float[Tensor, "b c t h w"]) -> Tensor:
        """A tensor of the shape and dtype that the transformer makes of these latents."""
        ...

    def take_tokens(self, args: tuple[Any, ...], positions: Int64[Tensor, " n"]) -> tuple[Any, ...]:
        """The blocks' arguments for these positions of a sequence, from those for all of it."""
        ...

    def attentions(self, blocks: Sequence[nn.Module]) -> list[Any]:
        """The self-attention of every block, in order; each has `processor`, `set_processor` and `heads`."""
        ...

    def processor(self, original: Any, layer: int, attention: SequenceAttention) -> Any:
        """A stand-in for a self-attention's processor, which does as it did but leaves the attention to `attention`."""
        ...
