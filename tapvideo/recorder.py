"""What a calibration clip leaves behind: inner products of the stack's residuals, and how branches are mixed."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from tapvideo.calibration.file import GUIDED
from tapvideo.config import ConfigError
from tapvideo.models.watch import StackCall

_COLUMNS = 1 << 20  # of residuals that are multiplied at a time


@dataclass(slots=True)
class Recorder:
    """Keeps some tokens' residuals of every branch and step of one clip."""

    tokens: int
    seen: dict[tuple[str, int], Float[Tensor, "t d"]] = field(default_factory=dict[tuple[str, int], Tensor])
    _rows: Tensor | None = None

    def see(self, call: StackCall) -> None:
        """One pass through the blocks."""
        if self._rows is None:
            count = call.hidden.shape[1]
            chosen = torch.randperm(count, generator=torch.Generator().manual_seed(0))[: self.tokens]
            self._rows = chosen.sort().values.to(call.hidden.device)
        residual = call.output[:, self._rows].float() - call.hidden[:, self._rows].float()
        self.seen[call.branch, call.step] = residual.flatten(0, 1).cpu()

    def branches(self) -> tuple[str, ...]:
        """In the order in which they came."""
        return tuple(dict.fromkeys(branch for branch, _ in self.seen))

    def gram(self, num_steps: int) -> Float64[Tensor, "m m"]:
        """Inner products of all branches and steps, per token.

        Raises:
            ConfigError: if the clip had other steps.
        """
        wanted = [(branch, step) for branch in self.branches() for step in range(num_steps)]
        if not self.seen or set(wanted) != set(self.seen):
            found = len({step for _, step in self.seen})
            raise ConfigError(f"steps={num_steps} is not what the pipeline made: it told of {found} steps")
        first = self.seen[wanted[0]]
        total = torch.zeros(len(wanted), len(wanted), dtype=torch.float64)
        size = max(1, _COLUMNS // first.shape[1])
        for start in range(0, len(first), size):
            part = torch.stack([self.seen[key][start : start + size].flatten() for key in wanted]).double()
            total += part @ part.T
        return total / len(first)


def mixture(branches: tuple[str, ...], guidance: float) -> Float64[Tensor, " b"]:
    """What branches count in the guided sum; 1 each where it is not known how they are mixed."""
    if set(branches) == GUIDED:
        return torch.tensor([guidance if b == "cond" else 1 - guidance for b in branches], dtype=torch.float64)
    return torch.ones(len(branches), dtype=torch.float64)


def apart(gram: Float64[Tensor, "m m"], branches: tuple[str, ...]) -> Float64[Tensor, "m m"]:
    """The Gram matrix without products of different branches, where it is not known how they are mixed."""
    if set(branches) == GUIDED:
        return gram
    steps = len(gram) // len(branches)
    return gram * torch.block_diag(*[torch.ones(steps, steps, dtype=gram.dtype)] * len(branches))
