"""What TAP must know of an architecture."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from tapvideo.parallel.attention import SequenceAttention
from tapvideo.stream import StreamAdapter

Call = Mapping[str, Any]
"""Arguments of a transformer's forward, by name."""


@runtime_checkable
class ModelAdapter(StreamAdapter, Protocol):
    """One diffusers transformer class: where its blocks are, its probe, and the grid its tokens lie on."""

    block_lists: tuple[str, ...]
    """Names of the transformer's lists of blocks, in the order they run; `TapStack` takes the place of the first."""

    head: str
    """Name of the module that projects the stack's output to latents: its output is what ranks gather."""

    def latent_size(self, call: Call) -> tuple[int, int, int]:
        """Frames, rows and columns of the latents of a call."""
        ...

    def token_grid(self, transformer: nn.Module, latent_size: tuple[int, int, int]) -> tuple[int, int, int]:
        """Frames, rows and columns of the tokens of latents of this size."""
        ...

    def empty_output(self, transformer: nn.Module, call: Call) -> Tensor:
        """A tensor of the shape and dtype that the transformer makes of a call."""
        ...

    def attentions(self, blocks: Sequence[nn.Module]) -> list[Any]:
        """The attention of every block to the tokens, in order; each has `processor`, `set_processor` and `heads`."""
        ...

    def processor(self, original: Any, layer: int, attention: SequenceAttention) -> Any:
        """A stand-in for a self-attention's processor, which does as it did but leaves the attention to `attention`."""
        ...


@runtime_checkable
class ProjectsText(Protocol):
    """An adapter of a transformer whose text goes through a module of its own, and then to blocks alone."""

    text_projection: str
    """Where in the transformer this module is."""


@runtime_checkable
class MakesTables(Protocol):
    """An adapter of a transformer that makes rotary tables for every call, which blocks alone read."""

    rotary: tuple[str, ...]
    """Names of the modules that make them."""


@runtime_checkable
class EmbedsAlike(Protocol):
    """An adapter of a transformer that embeds latents and timestep without a look at the text, and so its probe."""

    alike: tuple[str, ...]
    """Modules that get the same tensor first in all branches of a step; what they make of the rest is for blocks."""


@runtime_checkable
class AttendsAlike(Protocol):
    """An adapter of a transformer whose first self-attention comes before any look at the text."""

    first_attention: str
    """Its place in the transformer."""
    processor_class: type
    """Of its processor, which makes the same of the same."""


@runtime_checkable
class SeesCalls(Protocol):
    """An adapter of blocks that are not all called alike: `TapStack` gets the arguments of the first one alone."""

    def see(self, transformer: nn.Module, call: Call) -> None:
        """Note what the coming call asks of single blocks."""
        ...
