"""One clip of one method: made, counted, timed, measured against its references, and kept."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tapvideo.compare.config import CompareConfig
from tapvideo.compare.flops import counting
from tapvideo.compare.methods import Bench, Method, Settings
from tapvideo.compare.own import plain
from tapvideo.compare.results import ClipResult
from tapvideo.compare.shot import Shot, nudged
from tapvideo.compare.store import Reference, Store, digest, fingerprint_sources, half
from tapvideo.config import as_dict
from tapvideo.metrics import evaluate, frame_psnr, psnr
from tapvideo.sample import check_frames, sample
from tapvideo.video_io import write_mp4

_PACKAGES = ("tapvideo", "torch", "diffusers", "transformers", "cache-dit")
_IDENTICAL_DB = 200.0  # stands for infinite in a mean by which variants are ranked
_AGAINST_OTHERS = ("psnr", "ssim")  # to other references than the un-accelerated clip: the rest costs more than clips
_SHAPELESS = ("output_dir", "verbose", "compare", "dry_run", "quality", "tap", "schedule", "seeds", "prompt", "model")


@dataclass(frozen=True, slots=True)
class Take:
    """A clip in memory."""

    frames: Float[Tensor, "frames height width 3"]
    seconds: float
    """Of denoising."""
    latents: Float[Tensor, "steps b *latent"]
    full_passes: float


def versions() -> dict[str, str]:
    """Of everything that makes clips."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


@dataclass(slots=True)
class Studio:
    """Makes clips, or finds them in the store."""

    bench: Bench
    store: Store
    config: CompareConfig
    weights: str
    """Fingerprint of the model's files."""
    _plain_seconds: dict[Shot, float] = field(default_factory=dict[Shot, float])
    """Un-accelerated denoising seconds of this session, for ratios between neighbours in time."""
    _common: dict[str, Any] = field(init=False)
    """What shapes every clip."""

    def __post_init__(self) -> None:
        """Gather what shapes every clip: once, for it takes a while."""
        base = {name: value for name, value in as_dict(self.bench.config).items() if name not in _SHAPELESS}
        self._common = {
            "base": base,
            "weights": self.weights,
            "device": self.bench.pipe.device.type,
            "versions": versions(),
            "sources": fingerprint_sources(),
        }

    def take(self, method: Method, settings: Settings, shot: Shot) -> Take:
        """One clip, un-accelerated or not, made now."""
        latents, ledger, pipe = list[Tensor](), self.bench.ledger, self.bench.pipe
        with (
            counting(pipe.transformer, ledger),
            nudged(pipe, shot, self.config.nudge),
            method.apply(self.bench, settings) as config,
        ):
            ledger.clear()
            made = sample(
                pipe, config, shot.prompt, shot.seed, lambda step: None,
                on_latents=lambda now: latents.append(now.detach().cpu().clone()),
            )  # fmt: skip
        check_frames(made, shot.seed)
        passes = ledger.full_passes(self.bench.branches)
        return Take(made.frames, made.seconds.denoise, half(latents), passes)

    def reference(self, settings: Settings, shot: Shot) -> Reference:
        """An un-accelerated clip, possibly of other steps or another scheduler, from the store or made now."""
        key = self._key({"reference": settings, **self._shape(shot)})
        kept = self.store.read_reference(key)
        if kept is not None:
            return kept
        take = self.take(PLAIN, settings, shot)
        reference = Reference(take.frames, take.latents, take.seconds, take.full_passes)
        self.store.write_reference(key, reference)
        if not settings:
            self._plain_seconds[shot] = reference.seconds
        return reference

    def plain_seconds(self, shot: Shot) -> float:
        """Seconds of the un-accelerated clip in this process: a ratio to another day's would be of machines."""
        if shot not in self._plain_seconds:
            self._plain_seconds[shot] = self.take(PLAIN, {}, shot).seconds
        return self._plain_seconds[shot]

    def clip(
        self,
        method: Method,
        settings: Settings,
        shot: Shot,
        references: dict[str, Reference],
        *,
        noise_seed: int | None = None,
    ) -> tuple[ClipResult, str]:
        """A method's clip, measured, and its key in the store.

        Args:
            method: what makes it.
            settings: its knobs.
            shot: what the references are of.
            references: by name; that of the un-accelerated clip is empty.
            noise_seed: of the clip, where it is another.
        """
        key = self._clip_key(method, settings, shot, noise_seed)
        kept = self.store.read(key)
        if kept is None:
            seconds = self.plain_seconds(shot)
            take = self.take(method, settings, shot if noise_seed is None else replace(shot, seed=noise_seed))
            result = self._row(method, settings, shot, references, take)
            result.speedup = seconds / take.seconds
            return result, self._keep(key, take, result)
        return ClipResult(**kept), key

    def reference_clip(
        self, name: str, shot: Shot, reference: Reference, references: dict[str, Reference]
    ) -> tuple[ClipResult, str]:
        """A reference as a row of its own, measured against all of them."""
        method = replace(PLAIN, key=name or "plain")
        key = self._clip_key(method, {}, shot, None)
        kept = self.store.read(key)
        if kept is None:
            take = Take(reference.frames, reference.seconds, reference.latents, reference.full_passes)
            result = self._row(method, {}, shot, references, take)
            result.speedup = references[""].seconds / reference.seconds
            return result, self._keep(key, take, result)
        return ClipResult(**kept), key

    def trial(self, method: Method, settings: Settings, shot: Shot) -> tuple[float, float]:
        """Full passes and PSNR of a clip on which nothing is reported: all that tuning needs."""
        key = self._key({"trial": method.key, "settings": settings, **self._shape(shot)})
        kept = self.store.read(key)
        if kept is None:
            reference = self.reference({}, shot)
            take = self.take(method, settings, shot)
            decibels = min(psnr(take.frames, reference.frames), _IDENTICAL_DB)
            kept = {"full_passes": take.full_passes, "psnr": decibels}
            self.store.write(key, kept)
        return kept["full_passes"], kept["psnr"]

    def _row(
        self,
        method: Method,
        settings: Settings,
        shot: Shot,
        references: dict[str, Reference],
        take: Take,
    ) -> ClipResult:
        frames = take.frames
        result = ClipResult(
            method=method.key,
            budget=None,
            prompt=shot.prompt,
            seed=shot.seed,
            draw=shot.draw,
            status="ok",
            settings=settings,
            full_passes=take.full_passes,
            denoise_seconds=take.seconds,
        )
        for name, reference in references.items():
            names = [metric for metric in self.config.metrics if not name or metric in _AGAINST_OTHERS]
            values, missing = evaluate(frames, reference.frames, names)
            suffix = f"@{name}" if name else ""
            result.metrics |= {metric + suffix: value for metric, value in values.items()}
            result.not_computed |= {metric + suffix: why for metric, why in missing.items()}
        decibels = frame_psnr(frames, references[""].frames)
        result.frame_psnr = [None if math.isinf(value) else value for value in decibels]
        result.step_error = step_error(take.latents, references[""].latents)
        return result

    def _keep(self, key: str, take: Take, result: ClipResult) -> str:
        path = self.store.path(key, "video.mp4")
        write_mp4(path, take.frames, fps=self.config.fps, crf=self.config.quality)
        self.store.write(key, asdict(result), ("video.mp4",))
        return key

    def tuning_key(
        self, method: Method, clips: Any, target: float, tolerance: float, variants: Sequence[Settings] = ()
    ) -> str:
        """The store's name for settings that were found; a preset that was changed or a new calibration has another."""
        asked = {"clips": clips, "target": target, "tolerance": tolerance, "variants": list(variants)}
        return self._key({"tuned": method.key, **asked})

    def _clip_key(self, method: Method, settings: Settings, shot: Shot, noise_seed: int | None) -> str:
        """The store's name for a clip; the budget that asked for it shapes nothing."""
        shape = {"method": method.key, "settings": settings, **self._shape(shot), "noise_seed": noise_seed}
        measured = {"metrics": self.config.metrics, "ode_steps": self.config.ode_steps, "quality": self.config.quality}
        return self._key({**shape, **measured})

    def _shape(self, shot: Shot) -> dict[str, Any]:
        return shot.as_key() | ({"nudge": self.config.nudge} if shot.draw else {})

    def _key(self, values: dict[str, Any]) -> str:
        return digest({**values, **self._common})


PLAIN = Method("plain", "un-accelerated", lambda bench, target: [], plain)


def step_error(
    latents: Float[Tensor, "steps b *latent"], reference: Float[Tensor, "other_steps b *latent"]
) -> list[float | None]:
    """Relative L2 of the latents after every step; None where the two do not take the same steps."""
    if len(latents) != len(reference):
        return [None] * len(latents)
    pairs = zip(latents.double(), reference.double(), strict=True)
    return [(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b)).item() for a, b in pairs]
