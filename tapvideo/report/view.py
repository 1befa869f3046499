"""What the template shows: numbers as text, videos as data URIs, steps as columns."""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tapvideo.report.data import Clip, Step, doubt
from tapvideo.schedule import StepKind
from tapvideo.video_io import VideoInfo, video_info

_TINY = 320  # narrower clips are enlarged with hard pixels


@dataclass(frozen=True, slots=True)
class Headline:
    """One number at the top of the page."""

    label: str
    value: str
    unit: str
    note: str


@dataclass(frozen=True, slots=True)
class Film:
    """A video or a picture inside the page."""

    name: str
    caption: str
    uri: str
    info: VideoInfo
    still: bool
    """Whether it is a picture."""


@dataclass(frozen=True, slots=True)
class Column:
    """One step of the timeline; `stack` is a CSS gradient of the predictors' shares."""

    index: int
    full: bool
    height: float
    text: str
    stack: str | None


@dataclass(frozen=True, slots=True)
class LegendEntry:
    """One predictor: its colour, and its mean share over the clip's forecast steps."""

    label: str
    index: int
    colour: str
    share: float


@dataclass(frozen=True, slots=True)
class ClipView:
    """One clip as the template shows it."""

    clip: Clip
    films: list[Film]
    tiny: bool
    measures: str
    columns: list[Column]
    num_full: int
    longest: str
    legend: list[LegendEntry]
    branches: list[str]


def headlines(clips: Sequence[Clip]) -> list[Headline]:
    """The numbers at the top of the page; what was not measured is left out."""
    lines = [_speed(clips)]
    lines += _fidelity("PSNR", "dB", 1, [c.psnr for c in clips])
    lines += _fidelity("SSIM", "", 4, [c.ssim for c in clips])
    plan = next((c.steps for c in clips if c.steps), None)
    if plan:
        full = sum(s.kind is StepKind.FULL for s in plan)
        best = f"{len(plan)} / {full} = {len(plan) / full:.2f}\u00d7 at the very best"
        note = best if full < len(plan) else "nothing forecast"
        lines.append(Headline("Steps computed", f"{full}", f"of {len(plan)}", note))
    return lines


def _speed(clips: Sequence[Clip]) -> Headline:
    own = sum(c.denoise_seconds for c in clips)
    paired = [(c.denoise_seconds, c.baseline_denoise_seconds) for c in clips if c.baseline_denoise_seconds is not None]
    if not paired:
        forecasts = any(s.kind is StepKind.FORECAST for c in clips for s in c.steps)
        note = "no un-accelerated run to compare with" if forecasts else "every step computed"
        return Headline("Denoising", *_duration(own), note)
    after, before = (sum(column) for column in zip(*paired, strict=True))
    note = f"{' '.join(_duration(before))} \u2192 {' '.join(_duration(after))}"
    plan = next((c.steps for c in clips if c.steps), [])
    unsure = doubt(before / after, len(plan), sum(s.kind is StepKind.FULL for s in plan))
    return Headline("Speedup of denoising", f"{before / after:.2f}", "\u00d7", f"{note}; {unsure}" if unsure else note)


def _fidelity(label: str, unit: str, digits: int, values: Sequence[float | None]) -> list[Headline]:
    measured = [v for v in values if v is not None]
    finite = [v for v in measured if math.isfinite(v)]
    if not measured:
        return []
    if not finite:
        return [Headline(label, "\u221e", unit, "identical to the un-accelerated clip")]
    note = "to the un-accelerated clip, raw frames"
    if len(measured) > 1:
        note = f"mean; {min(finite):.{digits}f} to {max(finite):.{digits}f} over {len(finite)} clips"
    if len(finite) < len(measured):
        note += f", {len(measured) - len(finite)} more identical"
    return [Headline(label, f"{sum(finite) / len(finite):.{digits}f}", unit, note)]


def _duration(seconds: float) -> tuple[str, str]:
    if seconds < 1:
        return f"{seconds * 1e3:.3g}", "ms"
    return (f"{seconds:.1f}" if seconds < 100 else f"{seconds:.0f}"), "s"


def clip_view(clip: Clip, colours: dict[str, str]) -> ClipView:
    """One clip in the page's colours.

    Raises:
        OSError: if a video cannot be read.
    """
    longest = max((s.seconds for s in clip.steps), default=0.0)
    films = _films(clip)
    return ClipView(
        clip=clip,
        films=films,
        tiny=films[0].info.width < _TINY,
        measures=_measures(clip),
        columns=[_column(step, longest, colours) for step in clip.steps],
        num_full=sum(s.kind is StepKind.FULL for s in clip.steps),
        longest=" ".join(_duration(longest)),
        legend=_legend(clip, colours),
        branches=list(dict.fromkeys(m.branch for m in clip.maps)),
    )


def _films(clip: Clip) -> list[Film]:
    films = []
    if clip.baseline is not None:
        seconds = clip.baseline_denoise_seconds
        films.append(_film("Un-accelerated", clip.baseline, seconds))
    forecasts = any(s.kind is StepKind.FORECAST for s in clip.steps)
    plain = "Picture" if clip.video.suffix == ".png" else "Video"
    films.append(_film("Accelerated" if forecasts or clip.baseline else plain, clip.video, clip.denoise_seconds))
    return films


def _film(name: str, path: Path, seconds: float | None) -> Film:
    still = path.suffix == ".png"
    uri = f"data:{'image/png' if still else 'video/mp4'};base64,{base64.b64encode(path.read_bytes()).decode()}"
    caption = "" if seconds is None else f"denoised in {' '.join(_duration(seconds))}"
    return Film(name, caption, uri, video_info(path), still)


def _measures(clip: Clip) -> str:
    parts = [f"seed {clip.seed}"]
    if clip.baseline_denoise_seconds is not None:
        parts.append(f"{clip.baseline_denoise_seconds / clip.denoise_seconds:.2f}\u00d7 faster")
    if clip.psnr is not None:
        parts.append(f"PSNR {clip.psnr:.1f} dB" if math.isfinite(clip.psnr) else "identical frames")
    if clip.ssim is not None:
        parts.append(f"SSIM {clip.ssim:.4f}")
    return " \u00b7 ".join(parts)


def _column(step: Step, longest: float, colours: dict[str, str]) -> Column:
    sigma = "" if step.sigma is None else f" \u00b7 \u03c3 {step.sigma:.3f}"
    text = f"step {step.index} \u00b7 {step.kind}{sigma} \u00b7 {' '.join(_duration(step.seconds))}"
    top = sorted(((share, label) for label, share in step.shares.items() if share >= 0.005), reverse=True)
    if top:
        text += "\n" + " \u00b7 ".join(f"{label} {percent(share)}" for share, label in top)
    height = step.seconds / longest if longest else 0.0
    return Column(step.index, step.kind is StepKind.FULL, height, text, _gradient(step.shares, colours))


def _gradient(shares: dict[str, float], colours: dict[str, str]) -> str | None:
    if not shares:
        return None
    stops, low = [], 0.0
    for label, colour in colours.items():
        high = low + 100 * shares.get(label, 0.0)
        if high > low:
            stops.append(f"{colour} {low:.2f}% {high:.2f}%")
        low = high
    return f"linear-gradient(to top, {', '.join(stops)})"


def _legend(clip: Clip, colours: dict[str, str]) -> list[LegendEntry]:
    forecast = [s.shares for s in clip.steps if s.shares]
    used = {label for shares in forecast for label in shares} | {label for m in clip.maps for label in m.labels}
    return [
        LegendEntry(label, index, colour, sum(s.get(label, 0.0) for s in forecast) / max(len(forecast), 1))
        for index, (label, colour) in enumerate(colours.items())
        if label in used
    ]


def percent(share: float) -> str:
    """A share as text; a small one is not called none."""
    return "<\u00a01\u00a0%" if 0 < share < 0.005 else f"{100 * share:.0f}\u00a0%"
