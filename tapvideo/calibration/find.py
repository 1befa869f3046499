"""Which calibration fits a run: those that ship with tapvideo, and those that its user has made."""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tapvideo.calibration.file import Calibration, load_calibration
from tapvideo.checks import ConfigError

SHIPPED = Path(__file__).parents[1] / "assets" / "calibrations"
SUFFIX = ".safetensors"
_CLOSE = 1e-6


@dataclass(frozen=True, slots=True)
class RunKind:
    """What residuals depend on, but for the prompt: a calibration holds for runs that agree in all of it."""

    weights: str
    """As `model.weights` names them."""
    scheduler: str
    """Class of the scheduler."""
    flow_shift: float | None
    steps: int
    guidance: float
    true_cfg: float | None = None
    """Where `guidance` is an embedding: what mixes the branches, if there are two."""
    lora: str | None = None
    """What stands for LoRAs on the model, and their scale."""
    boundary: float | None = None
    """Where a second expert takes over, as a share of the noise."""
    guidance_2: float | None = None
    """Of the second expert, where it is another."""

    @property
    def scales(self) -> list[float]:
        """What mixes the branches, where there are two, by transformer."""
        first = self.guidance if self.true_cfg is None else self.true_cfg
        return [first] if self.boundary is None else [first, first if self.guidance_2 is None else self.guidance_2]

    def matches(self, calibration: Calibration) -> bool:
        """Whether a calibration is of such runs."""
        return not self.differences(calibration)

    def differences(self, calibration: Calibration) -> list[str]:
        """In what a calibration is of other runs: `key=its value, not ours`."""
        about, own = calibration.about, asdict(self)
        unlike = [name for name, value in own.items() if not _same(value, about.get(name))]
        return [f"{name}={about.get(name)!r}, not {own[name]!r}" for name in unlike]

    def __str__(self) -> str:
        """In words."""
        shift = "" if self.flow_shift is None else f", flow_shift={self.flow_shift:g}"
        cfg = "" if self.true_cfg is None else f", true_cfg_scale={self.true_cfg:g}"
        lora = "" if self.lora is None else f" and LoRA {self.lora}"
        second = "" if self.guidance_2 is None else f", guidance_scale_2={self.guidance_2:g}"
        edge = "" if self.boundary is None else f", boundary={self.boundary:g}"
        run = f"steps={self.steps}, guidance={self.guidance:g}{cfg}{second}{edge}"
        return f"{self.weights}{lora} with {self.scheduler}{shift}, {run}"


def _same(wanted: object, known: object) -> bool:
    if isinstance(wanted, float) and isinstance(known, int | float):
        return abs(wanted - known) <= _CLOSE * max(1.0, abs(wanted))
    return wanted == known


def own_folder() -> Path:
    """Where `tapvideo-calibrate` leaves its files: below `TAPVIDEO_HOME`, or else the user's cache folder."""
    home = os.environ.get("TAPVIDEO_HOME")
    if home:
        return Path(home).expanduser() / "calibrations"
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "tapvideo" / "calibrations"


def find_calibration(kind: RunKind) -> Path | None:
    """The calibration of such runs; the user's own goes before one that ships with tapvideo."""
    for path in _files():
        try:
            if kind.matches(load_calibration(path)):
                return path
        except ConfigError:
            continue  # a damaged file of the cache is no reason to stop: its maker writes it anew
    return None


def _files() -> Iterator[Path]:
    for folder in (own_folder(), SHIPPED):
        if folder.is_dir():
            yield from sorted(folder.glob(f"*{SUFFIX}"))
