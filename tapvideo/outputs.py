"""From clips in memory to what a run leaves on disk: videos, their record, and the report's data."""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

from tapvideo.config import GenerateConfig
from tapvideo.enable import TapSummary
from tapvideo.metrics import psnr, ssim
from tapvideo.record import ClipRecord, Comparison, MeanComparison, RunRecord, StageTimes, finite_or_none
from tapvideo.report.data import ChoiceMap, Clip, Report, Step, doubt
from tapvideo.run_folder import Job
from tapvideo.sample import Sample
from tapvideo.video_io import write_mp4, write_png


@dataclass(frozen=True, slots=True)
class Made:
    """One clip in memory, before it is written."""

    sample: Sample
    baseline: Sample | None
    """The same seed without acceleration, where the two are compared."""
    summary: TapSummary | None
    """None without TAP."""
    steps: list[Step]
    maps: list[ChoiceMap]


def write_clip(folder: Path, job: Job, made: Made, config: GenerateConfig) -> ClipRecord:
    """Write the clip, and its baseline, and tell what they took."""
    product = "image" if config.kind.makes_images else "video"
    video, baseline = (Path(job.name) / f"{name}.{config.kind.suffix}" for name in (product, "baseline"))
    summary = made.summary
    record = ClipRecord(
        prompt=job.prompt,
        seed=job.seed,
        video=video.as_posix(),
        seconds=_write(folder / video, made.sample, config),
        full_steps=summary.full_steps if summary else list(range(config.steps)),
        forecast_steps=summary.forecast_steps if summary else [],
    )
    if summary:
        record.shares, record.tap_seconds = summary.shares, summary.tap_seconds
        record.tap_state_bytes = summary.state_bytes
    if made.baseline:
        written = _write(folder / baseline, made.baseline, config)
        record.comparison = _compare(made.sample, made.baseline, baseline, written)
    return record


def describe(clip: ClipRecord) -> str:
    """What a clip took, in one line."""
    s = clip.seconds
    line = f"{clip.video}: text {s.text:.2f} s, denoise {s.denoise:.2f} s, VAE {s.vae:.2f} s, write {s.write:.2f} s"
    if not clip.comparison:
        return line
    c = clip.comparison
    fidelity = "identical" if c.psnr is None else f"PSNR {c.psnr:.1f} dB, SSIM {c.ssim:.3f}"
    unsure = doubt(c.speedup, len(clip.full_steps) + len(clip.forecast_steps), len(clip.full_steps))
    faster = f"{c.speedup:.2f}x faster denoising than {c.seconds.denoise:.2f} s{f' ({unsure})' if unsure else ''}"
    return f"{line}; {faster}, {fidelity}"


def mean_comparison(clips: list[ClipRecord]) -> MeanComparison | None:
    """The comparisons of a run as one, or None where there is none."""
    compared = [(clip, clip.comparison) for clip in clips if clip.comparison]
    if not compared:
        return None
    decibels = [c.psnr for _, c in compared if c.psnr is not None]
    all_differ = len(decibels) == len(compared)
    return MeanComparison(
        num_clips=len(compared),
        speedup=sum(c.seconds.denoise for _, c in compared) / sum(clip.seconds.denoise for clip, _ in compared),
        psnr=sum(decibels) / len(decibels) if all_differ else None,
        worst_psnr=min(decibels) if decibels else None,
        ssim=sum(c.ssim for _, c in compared) / len(compared),
    )


def describe_mean(mean: MeanComparison) -> str:
    """All clips of a run, in one line."""
    fidelity = "identical clips among them" if mean.psnr is None else f"PSNR {mean.psnr:.2f} dB"
    return f"{mean.num_clips} clips: {mean.speedup:.2f}x faster denoising, {fidelity}, SSIM {mean.ssim:.4f} on average"


def report_clip(folder: Path, clip: ClipRecord, made: Made) -> Clip:
    """A clip as the report shows it."""
    compared = clip.comparison
    return Clip(
        prompt=clip.prompt,
        seed=clip.seed,
        video=folder / clip.video,
        baseline=folder / compared.baseline if compared else None,
        psnr=(math.inf if compared.psnr is None else compared.psnr) if compared else None,
        ssim=compared.ssim if compared else None,
        denoise_seconds=clip.seconds.denoise,
        baseline_denoise_seconds=compared.seconds.denoise if compared else None,
        steps=made.steps,
        maps=made.maps,
    )


def report_of(record: RunRecord, config: GenerateConfig, clips: list[Clip]) -> Report:
    """The report of a run."""
    schedule = config.schedule
    beat = f"every {schedule.interval} steps" if schedule.kind == "interval" else schedule.kind
    facts = {
        "model": f"{config.model.name} ({config.dtype})",
        "method": config.tap.name,
        "schedule": f"{beat}, {record.plan.count('#')} full of {config.steps} steps" if config.tap.enabled else "none",
        **_experts(record),
        "scheduler": _scheduler(config),
        "guidance": f"{config.guidance:g}",
        **{key: str(getattr(config, key)) for key in ("image", "last_image", "lora", "lora_2") if getattr(config, key)},
        **({"lora_scale": f"{config.lora_scale:g}"} if config.lora else {}),
        **_product(config),
        "seconds": ", ".join(f"{stage} {_total(record, stage):.2f}" for stage in ("text", "denoise", "vae", "write")),
        "TAP itself": f"{sum(c.tap_seconds for c in record.clips):.2f} s of denoise, {_state_mib(record):.1f} MiB",
        "device": record.device,
        "versions": ", ".join(f"{name} {number}" for name, number in record.versions.items()),
        "configuration": json.dumps(record.config, indent=2, ensure_ascii=False),
    }
    return Report(title=f"{config.model.name}, {config.tap.name}", command=record.command, facts=facts, clips=clips)


def _product(config: GenerateConfig) -> dict[str, str]:
    size = f"{config.width}x{config.height}"
    if config.kind.makes_images:
        return {"picture": f"{size}, png"}
    return {"video": f"{size}, {config.num_frames} frames at {config.fps}/s, crf {config.quality}"}


def _experts(record: RunRecord) -> dict[str, str]:
    """Which transformer made which steps, where there are two, as `#` full and `.` forecast."""
    if len(record.experts) < 2:
        return {}
    shown = (f"{name} {a} to {b - 1}: {record.plan[a:b]}" for name, (a, b) in record.experts.items() if b > a)
    return {"steps by expert": ", ".join(shown)}


def _scheduler(config: GenerateConfig) -> str:
    own = config.kind.own_shift or config.scheduler not in ("unipc", "euler")
    return (
        f"{config.scheduler}, shift as stored beside the weights"
        if own
        else (f"{config.scheduler}, flow shift {config.flow_shift:g}")
    )


def _total(record: RunRecord, stage: str) -> float:
    """Seconds of one stage over all clips, baselines apart."""
    return sum(getattr(clip.seconds, stage) for clip in record.clips)


def _state_mib(record: RunRecord) -> float:
    return max((clip.tap_state_bytes for clip in record.clips), default=0) / 2**20


def _write(path: Path, made: Sample, config: GenerateConfig) -> StageTimes:
    start = time.perf_counter()
    if config.kind.makes_images:
        write_png(path, made.frames[0])
    else:
        write_mp4(path, made.frames, fps=config.fps, crf=config.quality, sound=made.sound)
    seconds = made.seconds
    return StageTimes(text=seconds.text, denoise=seconds.denoise, vae=seconds.vae, write=time.perf_counter() - start)


def _compare(made: Sample, baseline: Sample, path: Path, seconds: StageTimes) -> Comparison:
    fidelity = psnr(made.frames, baseline.frames)
    return Comparison(
        baseline=path.as_posix(),
        seconds=seconds,
        speedup=baseline.seconds.denoise / made.seconds.denoise,
        psnr=finite_or_none(fidelity),
        ssim=ssim(made.frames, baseline.frames),
        identical=bool((made.frames == baseline.frames).all()),
    )
