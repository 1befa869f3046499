"""What a comparison leaves behind: one `ClipResult` per method, budget, prompt and seed."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

OURS = ("tap-default", "tap-paper")


_KNOWS_THE_TRUTH = "oracle-"


def is_bound(method: str) -> bool:
    """Whether this is the key of a run that knows the truth: shown beside the methods, and never ranked or drawn."""
    return method.startswith(_KNOWS_THE_TRUTH)


def ours(methods: Iterable[str]) -> str:
    """Which method of ours others are set against, by its key: the first of `OURS` that is among these."""
    known = set(methods)
    return next((key for key in OURS if key in known), OURS[-1])


@dataclass(kw_only=True)
class ClipResult:
    """One method's clip of one prompt and seed, against references of the same seed on raw frames."""

    method: str
    """Key of the method, e.g. `tap-paper`, `diffusers-taylorseer`, `cache-dit-dbcache`, `steps-unipc`."""
    budget: float | None
    """Asked acceleration, steps over full-pass equivalents; None for references."""
    prompt: str
    seed: int
    draw: int = 0
    """0: from the seed's noise; others: from that noise, nudged."""
    status: str
    """`ok`, `failed` or `not_run`; figures are None unless ok."""
    note: str = ""
    """Why it failed or was not run, in words for the reader."""
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    """The method's own knobs as they were set for this budget."""
    full_passes: float | None = None
    """Full-pass equivalents per guidance branch: FLOPs of all transformer calls over those of one plain call."""
    denoise_seconds: float | None = None
    speedup: float | None = None
    """Denoising seconds of the un-accelerated clip over this clip's."""
    metrics: dict[str, float | None] = field(default_factory=dict[str, float | None])
    """By `METRIC` (to the un-accelerated clip) and `METRIC@REFERENCE` (to another reference); None: not computed."""
    not_computed: dict[str, str] = field(default_factory=dict[str, str])
    """Why a metric is None."""
    frame_psnr: list[float | None] = field(default_factory=list[float | None])
    """PSNR of every frame in dB; None where the frame is identical."""
    step_error: list[float | None] = field(default_factory=list[float | None])
    """Relative L2 of the latents after every step to the un-accelerated ones; None where steps do not match."""
    video: str | None = None
    """The mp4, relative to the results' folder."""


@dataclass(kw_only=True)
class MethodSummary:
    """One row of the table: a method at a budget, over all clips."""

    method: str
    label: str
    """What the reader calls it, e.g. `TaylorSeer (diffusers 0.42.1)`."""
    budget: float | None
    num_clips: int
    num_failed: int
    full_passes: float | None
    speedup: float | None
    """Total seconds over total seconds."""
    mean: dict[str, float | None]
    low: dict[str, float | None]
    """Lower end of the 95 % bootstrap interval over clips."""
    high: dict[str, float | None]
    worst: dict[str, float | None]
    note: str = ""
    behind: int | None = None
    """Clips that are more than 0.5 dB of PSNR below the better of `tap-reuse` and `tap-taylor1` at the same budget."""
    chance: float | None = None
    """Standard deviation in dB of one clip's PSNR over draws that differ by a nudge; None with one draw."""


@dataclass(kw_only=True)
class PairedDifference:
    """A method against a named rival at one budget: mean over clips of the difference, with its 95 % interval."""

    method: str
    rival: str
    budget: float
    metric: str
    mean: float
    low: float
    high: float
    num_clips: int
    behind: int | None = None
    """Clips on which it is more than 0.5 dB below the rival; of PSNR alone."""


@dataclass(kw_only=True)
class Comparison:
    """`results.json`."""

    title: str
    command: str
    versions: dict[str, str]
    device: str
    settings: dict[str, Any]
    """The resolved configuration."""
    clips: list[ClipResult] = field(default_factory=list[ClipResult])
    table: list[MethodSummary] = field(default_factory=list[MethodSummary])
    differences: list[PairedDifference] = field(default_factory=list[PairedDifference])
    diagnostics: dict[str, Any] = field(default_factory=dict[str, Any])
