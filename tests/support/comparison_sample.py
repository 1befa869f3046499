"""Synthetic comparisons for the tests of the report."""

import math
import random
from collections.abc import Sequence
from pathlib import Path

import torch

from tapvideo.compare.results import ClipResult, Comparison, MethodSummary, PairedDifference
from tapvideo.video_io import write_mp4

STEPS = 50
FRAMES, FPS = 17, 8
NASTY = (
    """<script>alert(1)</script></script><img src=x onerror=alert(2)> "quoted" 'single' & {{ 7 * 7 }} <!-- $\\frac{"""
)
REFERENCE = "full-unipc"
METHODS = {  # key: label, PSNR at 2x, PSNR lost per doubling of the budget
    "steps-unipc": ("Fewer steps, UniPC", 27.5, 4.2),
    "steps-euler": ("Fewer steps, Euler", 25.0, 3.6),
    "tap-paper": ("TAP, paper", 35.4, 5.9),
    "tap-taylor1": ("TAP, taylor1", 36.2, 6.1),
    "tap-reuse": ("TAP, reuse", 32.0, 4.8),
    "diffusers-taylorseer": ("TaylorSeer (diffusers 0.42.1)", 33.4, 8.0),
    "diffusers-fbcache": ("FirstBlockCache (diffusers 0.42.1)", 33.0, 4.6),
    "diffusers-magcache": ("MagCache (diffusers 0.42.1)", 34.8, 5.4),
    "diffusers-pab": ("Pyramid attention broadcast (diffusers 0.42.1)", 29.1, 6.6),
    "cache-dit-dbcache": ("DBCache (cache-dit 1.5.3)", 34.1, 4.9),
    "cache-dit-taylor": ("DBCache with TaylorSeer (cache-dit 1.5.3)", 34.9, 7.4),
    "rule-teacache": ("TeaCache's rule", 34.0, 4.4),
}
BUDGETS = (2.0, 2.5, 3.5, 5.0)


def write_square(path: Path, *, shift: float = 0.0, noise: float = 0.0, size: int = 64) -> None:
    """A square that moves right over a soft background: `FRAMES` frames, `FPS` to the second."""
    generator = torch.Generator().manual_seed(1)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    frames = []
    for i in range(FRAMES):
        left = size * (0.1 + 0.6 * i / FRAMES) + shift
        inside = ((x > left) & (x < left + size * 0.25) & (y > size * 0.35) & (y < size * 0.65)).float()[..., None]
        ground = torch.stack([0.15 + 0.2 * y / size, 0.3 + 0.3 * x / size, 0.6 + 0 * x], dim=-1)
        frame = ground * (1 - inside) + inside * torch.tensor([0.9, 0.35, 0.15])
        frames.append(frame + noise * torch.randn(frame.shape, generator=generator))
    write_mp4(path, torch.stack(frames), fps=FPS, crf=18)


def make_comparison(
    videos: Sequence[str | None],
    *,
    methods: Sequence[str] = tuple(METHODS),
    budgets: Sequence[float] = BUDGETS,
    prompts: Sequence[str] = ("a red square moving right on a blue cloudy background",),
    seeds: Sequence[int] = (0,),
) -> Comparison:
    """Plausible results: the first video is the un-accelerated one, the others are dealt out to the methods."""
    rng = random.Random(0)
    clips, table = [], []
    pairs = [(prompt, seed) for prompt in prompts for seed in seeds]
    for prompt, seed in pairs:
        clips.append(
            ClipResult(
                method=REFERENCE, budget=None, prompt=prompt, seed=seed, status="ok", full_passes=float(STEPS),
                denoise_seconds=10.0, speedup=1.0, metrics={"psnr": None, "ssim": 1.0},
                not_computed={"psnr": "infinite: identical to the reference"}, video=videos[0],
            )
        )  # fmt: skip
    table.append(_row(REFERENCE, "Un-accelerated, 50 UniPC steps", None, clips, STEPS))
    for number, method in enumerate(methods):
        label, start, slope = METHODS[method]
        for budget in budgets:
            own = [
                _clip(method, budget, pair, start - slope * math.log2(budget / 2), rng, videos[number % len(videos)])
                for pair in pairs
            ]
            clips += own
            table.append(_row(method, label, budget, own, STEPS / budget))
    differences = [
        PairedDifference(
            method="tap-paper", rival="tap-taylor1", budget=budget, metric="psnr", mean=-0.72, low=-1.1, high=-0.31,
            num_clips=len(pairs),
        )
        for budget in budgets
    ]  # fmt: skip
    return Comparison(
        title="wan_tiny: 12 methods at equal full passes",
        command="python eval/compare.py preset=full",
        versions={"tapvideo": "0.1.0", "torch": "2.13.0", "diffusers": "0.42.1", "cache-dit": "1.5.3"},
        device="cpu, 2 threads",
        settings={"steps": STEPS, "budgets": list(budgets), "model": {"name": "wan_tiny"}},
        clips=clips,
        table=table,
        differences=differences,
    )


def _clip(
    method: str, budget: float, pair: tuple[str, int], psnr: float, rng: random.Random, video: str | None
) -> ClipResult:
    psnr += rng.gauss(0, 1.2)
    plain = method.startswith("steps")
    error = [10 ** (-psnr / 20) * (i + 1) / STEPS * rng.uniform(0.8, 1.2) if i > 2 else None for i in range(STEPS)]
    return ClipResult(
        method=method,
        budget=budget,
        prompt=pair[0],
        seed=pair[1],
        status="ok",
        full_passes=STEPS / budget,
        denoise_seconds=10 / budget,
        speedup=budget * (0.98 if plain else rng.uniform(0.78, 0.95)),
        metrics={
            "psnr": psnr,
            "ssim": 1 - 10 ** (-psnr / 18),
            "lpips": 10 ** (-psnr / 22),
            "psnr@ode": psnr - 3,
            "psnr@the-solution-of-the-ode-by-unipc-in-200-steps": psnr - 3,
        },
        frame_psnr=[psnr + 2 * math.sin(i / 3) + rng.gauss(0, 0.4) for i in range(FRAMES)],
        step_error=[] if plain else error,
        video=video,
    )


def _row(method: str, label: str, budget: float | None, clips: list[ClipResult], passes: float) -> MethodSummary:
    parts: dict[str, dict[str, float | None]] = {"mean": {}, "low": {}, "high": {}, "worst": {}}
    for key in clips[0].metrics:
        values = [v for c in clips if (v := c.metrics[key]) is not None]
        mean = sum(values) / len(values) if values else None
        spread = 0.02 * mean if mean is not None else 0.0
        for part, value in (("mean", mean), ("low", mean), ("high", mean), ("worst", min(values, default=None))):
            sign = {"low": -1, "high": 1}.get(part, 0)
            parts[part][key] = None if value is None else value + sign * spread
    speed = [c.speedup for c in clips if c.speedup is not None]
    return MethodSummary(
        method=method, label=label, budget=budget, num_clips=len(clips), num_failed=0, full_passes=passes,
        speedup=sum(speed) / len(speed) if speed else None, **parts,
    )  # fmt: skip


def _at_budget(level: float) -> dict:
    """As the harness writes them, with maps."""
    names = ["per token", "per clip", "random", "oracle per token", "oracle global", "reuse"]
    names += [f"order {order}, k{-back or ''}" for order in (1, 2) for back in range(3)]
    steps = [i for i in range(3, STEPS) if i % 3]
    labels = [name for name in names if name.startswith(("reuse", "order"))]
    rng = random.Random(1)
    return {
        "verdict": "The choice per token does not earn its keep.",
        "clips": 8,
        "residual error, mean over steps": {name: level * (i + 1) for i, name in enumerate(names)},
        "share of tokens by predictor": {name: 1 / len(labels) for name in labels},
        "residual error by step": {"step": steps}
        | {name: [level * (i + 1) * (1.2 + math.sin(s / 9)) for s in steps] for i, name in enumerate(names)},
        "predictors": {
            "labels": labels,
            "steps": steps,
            "grid": [5, 8, 8],
            "choice": [[min(int(rng.expovariate(0.8)), len(labels) - 1) for _ in range(320)] for _ in steps],
        },
    }


def diagnostics() -> dict:
    """Diagnostics of many shapes."""
    wave = [round(0.5 + 0.4 * math.sin(i / 4), 4) for i in range(STEPS)]
    return {
        "verdict": "The per-token choice does not earn its keep here: one global order is 0.7 dB closer.",
        "clips": 8,
        "per_step": {
            "step": list(range(3, 3 + STEPS)),
            "spearman": wave,
            "top1_agreement": [None if i % 10 == 0 else v / 2 for i, v in enumerate(wave)],
        },
        "error": {"tap": {"3": 0.02, "4": 0.03, "10": 0.05}, "mean_seconds": 0.01, "is_exact": False, "none": None},
        "recompute": [{"step": i, "share": 0.05 * i, "gain": 0.4 * i} for i in range(6)],
        "odd": [[1, 2], [3, "x"]],
        "2.5x": _at_budget(0.1),
        "5x": _at_budget(0.2),
    }
