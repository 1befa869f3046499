"""What the guidance branches of a step have in common: from the same latents and timestep comes the same probe."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tapvideo.history import BranchState, StepContext


@dataclass(frozen=True, slots=True)
class Before:
    """A branch of a step, for those that follow on the same step with the same latents and timestep."""

    context: StepContext
    state: BranchState
    error: Float[Tensor, "b n p"] | None = None
    """Of every candidate for every token, on a forecast step."""

    def probe(self, context: StepContext, state: BranchState) -> Float[Tensor, "b n d"] | None:
        """The probe that another branch would make once more on a full step; None where it is not the same."""
        if not self._is_of(context, state) or self.state.anchor_step != context.step:
            return None
        return self.state.probes[0] if self.state.probes else None

    def errors(self, context: StepContext, state: BranchState) -> Float[Tensor, "b n p"] | None:
        """The errors that another branch would find once more; None where its anchors or its probe are not the same."""
        same = self.state.coords == state.coords and len(_same(self.state, state)) == len(state.coords)
        return self.error if same and self._is_of(context, state) else None

    def num_bytes(self, context: StepContext, state: BranchState) -> int:
        """Bytes of the probes that another branch has from this one."""
        same = _same(self.state, state) if self._is_of(context, state) else []
        return sum(probe.numel() * probe.element_size() for probe in same)

    def _is_of(self, context: StepContext, state: BranchState) -> bool:
        return context.repeats and context.step == self.context.step and state is not self.state


def _same(one: BranchState, other: BranchState) -> list[Tensor]:
    """Probes that both keep in the same place: not equal ones, the very same."""
    return [mine for mine, yours in zip(one.probes, other.probes, strict=False) if mine is yours]
