"""The last full steps of one branch: their coordinates, probes and stack residuals.

State per branch is 2 K tensors of [b, n, d] in the model's dtype, whatever the number of layers; K of them are probes,
which branches with the same latents have in common. Wan-14B at 720p x 81 frames has n = 75,600 and d = 5,120, hence
0.72 GiB per bf16 anchor and stream before sharding.
"""

from dataclasses import dataclass, field

from jaxtyping import Bool, Float
from torch import Tensor

from tapvideo.parallel.kept import KeptKV


@dataclass(frozen=True, slots=True)
class StepContext:
    """Where the denoising loop stands when the stack is called."""

    branch: str
    step: int
    num_steps: int
    sigma: float | None = None
    given: Bool[Tensor, "b n"] | None = None
    """Tokens of the whole sequence that are not denoised: a first frame's, which stands at timestep 0."""
    repeats: bool = False
    """Whether the call is the one before it, but for the text: another branch's, or the same one's again."""


@dataclass(slots=True)
class BranchState:
    """Anchors of one guidance branch, newest first, and where its run stands."""

    depth: int
    """K, the number of anchors kept."""
    coords: list[float] = field(default_factory=list[float])
    probes: list[Float[Tensor, "b n d"]] = field(default_factory=list[Tensor])
    """Empty where the method has one predictor and nothing to choose."""
    residuals: list[Float[Tensor, "b n d"]] = field(default_factory=list[Tensor])
    anchor_step: int | None = None
    """Index of the newest full step."""
    first_step: int = 0
    """Index of the first step that this branch saw; an expert's may lie in mid-run."""
    num_calls: int = 0
    kept: KeptKV | None = None
    """Keys and values of every layer, where tokens are recomputed."""
    companion: "BranchState | None" = None
    """Anchors of the second sequence, where the blocks change two."""

    def beside(self) -> "BranchState":
        """The companion's anchors, which may be the first."""
        self.companion = self.companion or BranchState(self.depth)
        return self.companion

    def parts(self, count: int) -> "list[BranchState]":
        """Anchors of so many sequences, one or two."""
        return [self] if count == 1 else [self, self.beside()]

    def push(self, step: int, coord: float, probe: Tensor | None, residual: Float[Tensor, "b n d"]) -> None:
        """Store a full step as the newest anchor and drop the oldest beyond `depth`.

        Raises:
            ValueError: if the coordinate equals the newest one, or the features changed shape or dtype.
        """
        if self.coords and coord == self.coords[0]:
            raise ValueError(f"two anchors at the same coordinate {coord}; the history was not reset between runs")
        if self.residuals and (residual.shape, residual.dtype) != (self.residuals[0].shape, self.residuals[0].dtype):
            raise ValueError(
                f"features changed from {tuple(self.residuals[0].shape)} to {tuple(residual.shape)} within a run"
            )
        self.coords.insert(0, coord)
        self.residuals.insert(0, residual)
        if probe is not None:
            self.probes.insert(0, probe)
        self.trim(self.depth)
        self.anchor_step = step

    def trim(self, count: int) -> None:
        """Keep the newest `count` anchors."""
        for kept in (self.coords, self.residuals, self.probes):
            del kept[count:]
        if self.companion is not None:
            self.companion.trim(count)

    def release(self) -> None:
        """Let go of everything that takes room."""
        self.trim(0)
        if self.kept is not None:
            self.kept.clear()

    def reset(self) -> None:
        """Forget everything: a new run begins."""
        self.release()
        self.anchor_step = None
        self.first_step = self.num_calls = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of all anchors, the companion's too, kept K/V apart."""
        own = sum(t.numel() * t.element_size() for t in (*self.probes, *self.residuals))
        return own + (self.companion.num_bytes if self.companion else 0)
