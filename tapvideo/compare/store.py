"""Finished clips on disk, by a hash of what shapes them: what is there and whole is not made again."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tapvideo.video_io import atomic_path, atomic_write_text

_METHOD_SOURCES = (
    "predictors",
    "models",
    "compare/own.py",
    "compare/oracle.py",
    "compare/rules.py",
    "compare/flops.py",
    "compare/shot.py",
)
_METHOD_SOURCES += (
    "banks.py",
    "chunks.py",
    "history.py",
    "planning.py",
    "probe.py",
    "schedule.py",
    "select.py",
    "stack.py",
    "enable.py",
    "guard.py",
    "stream.py",
    "twin.py",
    "recompute.py",
)
_METHOD_SOURCES += ("compare/diffusers_peers.py", "compare/cache_dit_peers.py", "sample.py", "pipeline.py")
_METHOD_SOURCES += ("schedulers.py", "pipeline_kinds.py", "images.py", "calibration")


def digest(values: Any) -> str:
    """A short hash of plain values."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def fingerprint_sources() -> str:
    """A hash of the code that makes clips: a method that was changed is measured again."""
    package = Path(__file__).parents[1]
    total = hashlib.sha256()
    for name in _METHOD_SOURCES:
        path = package / name
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            total.update(file.relative_to(package).as_posix().encode() + file.read_bytes())
    return total.hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Reference:
    """A clip that others are measured against, as it came out of the pipeline."""

    frames: Float[Tensor, "frames height width 3"]
    latents: Float[Tensor, "steps b *latent"]
    """After every step, in half precision."""
    seconds: float
    """Of denoising."""
    full_passes: float


@dataclass(frozen=True, slots=True)
class Store:
    """A folder of entries; an entry that is not whole counts as missing."""

    folder: Path

    def read(self, key: str) -> dict[str, Any] | None:
        """The values of an entry, or None where there is none that is whole."""
        try:
            entry = json.loads((self.folder / key / "entry.json").read_text(encoding="utf-8"))
            values, videos = entry["values"], entry["videos"]
            whole = digest(values) == entry["digest"] and all(
                file_sha256(self.folder / key / name) == sha for name, sha in videos.items()
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return values if whole else None

    def write(self, key: str, values: dict[str, Any], videos: tuple[str, ...] = ()) -> None:
        """Keep an entry; its videos lie in its folder already. It counts from the moment this returns."""
        shas = {name: file_sha256(self.folder / key / name) for name in videos}
        entry = {"digest": digest(values), "videos": shas, "values": values}
        atomic_write_text(self.folder / key / "entry.json", json.dumps(entry, indent=1))

    def read_reference(self, key: str) -> Reference | None:
        """A reference, or None where there is none that is whole."""
        values = self.read(key)
        try:
            tensors = load_file(self.folder / key / "reference.safetensors") if values else {}
            return Reference(tensors["frames"], tensors["latents"], **values) if values else None
        except (OSError, KeyError, ValueError, TypeError, SafetensorError):
            return None

    def write_reference(self, key: str, reference: Reference) -> None:
        """Keep a reference, losslessly."""
        name = "reference.safetensors"
        tensors = {"frames": reference.frames.contiguous(), "latents": reference.latents.contiguous()}
        with atomic_path(self.folder / key / name) as temp:
            save_file(tensors, temp)
        values = {"seconds": reference.seconds, "full_passes": reference.full_passes}
        self.write(key, values, (name,))

    def path(self, key: str, name: str) -> Path:
        """Where a file of an entry lies."""
        return self.folder / key / name

    def copy(self, key: str, name: str, to: Path) -> None:
        """A file of an entry, copied into a report's folder; nothing happens where it is there already."""
        source = self.folder / key / name
        if not to.is_file() or to.stat().st_size != source.stat().st_size:
            with atomic_path(to) as temp:
                shutil.copyfile(source, temp)


def half(latents: list[Tensor]) -> Float[Tensor, "steps b *latent"]:
    """Latents of all steps as they are kept: half precision tells errors down to a thousandth."""
    return torch.stack(latents).to(torch.float16)


def file_sha256(path: Path) -> str:
    """Of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
