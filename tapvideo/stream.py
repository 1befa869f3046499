"""What goes through a transformer's blocks, and what must be known of blocks to run them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int64
from torch import Tensor, nn

from tapvideo.history import BranchState
from tapvideo.select import forecast


@dataclass(frozen=True, slots=True)
class Stream:
    """The arguments of one block."""

    hidden: Float[Tensor, "b n d"]
    """The tokens of the video: what is forecast, and what ranks share."""
    text: Float[Tensor, "b m e"] | None = None
    """A text stream that the blocks change too; every rank has all of it, and it is never forecast."""
    rest: tuple[Any, ...] = ()
    """What all blocks get alike: timesteps, rotary tables, masks, and text that is only attended to."""
    companion: "Stream | None" = None
    """A second sequence, of a width of its own, that the same blocks change (LTX-2's sound): every rank has all of it,
    and it is forecast as the first is, from anchors of its own and by its own errors."""

    @property
    def parts(self) -> "list[Stream]":
        """The sequences that the blocks change: the video's tokens, and a companion's where there is one."""
        return [self] if self.companion is None else [self, self.companion]


@runtime_checkable
class StreamAdapter(Protocol):
    """How an architecture's blocks are called."""

    def stream(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Stream:
        """From the arguments with which the model's forward calls its first block."""
        ...

    def run(self, block: nn.Module, stream: Stream) -> Stream:
        """One block."""
        ...

    def result(self, stream: Stream) -> Any:
        """A stream as a block gives it out, and as the model's forward takes it from the last one."""
        ...

    def read_result(self, result: Any) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b m e"] | None]:
        """Tokens and text of what a block gave out."""
        ...

    def modulated_input(self, block: nn.Module, stream: Stream) -> Float[Tensor, "b n d"]:
        """Input of block 0's attention, norm and modulation applied, in the dtype of the tokens."""
        ...

    def take_tokens(self, stream: Stream, positions: Int64[Tensor, " n"]) -> Stream:
        """The stream of the tokens at these positions, ascending; its text and its companion stay whole."""
        ...


def forecast_parts(stream: Stream, state: BranchState, weights: Sequence[Tensor]) -> Stream:
    """What the blocks would make of these sequences, as their anchors foretell it."""
    hidden, *beside = [
        forecast(part.hidden, anchors.residuals, own)
        for part, anchors, own in zip(stream.parts, state.parts(len(stream.parts)), weights, strict=True)
    ]
    companion = replace(stream.companion, hidden=beside[0]) if stream.companion is not None else None
    return replace(stream, hidden=hidden, companion=companion)
