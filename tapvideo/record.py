"""`run.json`: what was run, on what, and what it took."""

import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tapvideo.config import GenerateConfig
from tapvideo.parallel.ledger import Ledger
from tapvideo.video_io import atomic_write_text

_PACKAGES = ("tapvideo", "torch", "diffusers", "transformers", "accelerate")


@dataclass(kw_only=True)
class StageTimes:
    """Seconds of one clip, apart."""

    text: float
    denoise: float
    vae: float
    write: float


@dataclass(kw_only=True)
class Comparison:
    """The clip against the same seed without acceleration, on raw frames."""

    baseline: str
    seconds: StageTimes
    """Of the baseline."""
    speedup: float
    """Of the denoising loop."""
    psnr: float | None
    """In dB; None where the clips are identical."""
    ssim: float
    identical: bool


@dataclass(kw_only=True)
class ClipRecord:
    """One clip."""

    prompt: str
    seed: int
    video: str
    seconds: StageTimes
    full_steps: list[int]
    forecast_steps: list[int]
    shares: dict[int, dict[str, float]] = field(default_factory=dict)
    """Share of tokens per predictor, by forecast step."""
    tap_seconds: float = 0.0
    """Seconds of forecasts, and of probes and history on full steps; a part of `seconds.denoise`."""
    tap_state_bytes: int = 0
    comparison: Comparison | None = None


@dataclass(kw_only=True)
class MeanComparison:
    """All compared clips of a run."""

    num_clips: int
    speedup: float
    """Of the denoising loops, total over total."""
    psnr: float | None
    """Mean in dB; None where any clip is identical to its baseline."""
    worst_psnr: float | None
    ssim: float


@dataclass(kw_only=True)
class Messages:
    """What one rank received from others."""

    bytes: int
    calls: int


@dataclass(kw_only=True)
class RunRecord:
    """One run."""

    command: str
    config: dict[str, Any]
    versions: dict[str, str]
    device: str
    plan: str
    """One character a step: `#` full, `.` forecast."""
    experts: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    """First step of every transformer and the one after its last, by component name."""
    clips: list[ClipRecord] = field(default_factory=list)
    mean: MeanComparison | None = None
    """None where nothing was compared."""
    mesh: dict[str, int] = field(default_factory=lambda: {"dp": 1, "cfg": 1, "sp": 1})
    """Ranks on every axis."""
    messages: dict[str, dict[str, Messages]] = field(default_factory=dict)
    """What rank 0 received from other ranks for its last clip, by kind of step and of message."""

    def save(self, path: Path) -> None:
        """Write the record, whole or not at all."""
        atomic_write_text(path, json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def messages(ledger: Ledger) -> dict[str, dict[str, Messages]]:
    """A ledger for the record; empty where one rank did everything."""
    return {
        kind: {what: Messages(bytes=tally.bytes, calls=tally.calls) for what, tally in found.items()}
        for kind, found in ledger.by_kind().items()
    }


def new_record(
    config: GenerateConfig, command: str, device: torch.device, plan: str, experts: Mapping[str, range]
) -> RunRecord:
    """A record without clips."""
    return RunRecord(
        command=command,
        config=config.as_dict(),
        versions=package_versions(),
        device=device_name(device),
        plan=plan,
        experts={name: [steps.start, steps.stop] for name, steps in experts.items()},
    )


def finite_or_none(value: float) -> float | None:
    """Json has no infinity."""
    return value if math.isfinite(value) else None


def package_versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    return {"python": platform.python_version(), **{name: package_version(name) for name in _PACKAGES}}


def device_name(device: torch.device) -> str:
    """What a person would call the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()} ({os.cpu_count()} cores, {torch.get_num_threads()} threads)"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def package_version(name: str) -> str:
    """What is installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
