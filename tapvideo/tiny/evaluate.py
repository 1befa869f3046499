"""`python -m tapvideo.tiny.evaluate`: the figures of the embedded model's card, on captions held out of training.

Measures what the VAE keeps, whether generated clips show what their captions say, and how sensitive the trajectories
are: how far runs of fewer steps land from the run of fifty.
"""

import argparse
import json
import random
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanPipeline
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor
from tqdm import tqdm

from tapvideo.tiny import scenes, vae
from tapvideo.tiny.score import FolderScore, score_clip, score_folder

_BATCH = 8
_REFERENCE_STEPS = 50


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    args = _parse(argv)
    pipe = WanPipeline.from_pretrained(args.weights, torch_dtype=torch.float32, use_safetensors=True).to(args.device)
    pipe.set_progress_bar_config(disable=True)
    captions = held_out_captions(args.clips, args.seed)
    mean_psnr, worst_psnr, *_ = vae.measure(pipe.vae)
    clips, seconds = generate(pipe, captions, guidance=args.guidance, steps=_REFERENCE_STEPS, scheduler="unipc")
    figures: dict[str, Any] = {
        "vae_psnr_db": round(mean_psnr, 2),
        "vae_worst_psnr_db": round(worst_psnr, 2),
        "guidance": args.guidance,
        "score": asdict(score(clips, captions)),
        "seconds_per_clip": round(seconds / len(captions), 2),
        "sensitivity_psnr_db": sensitivity(pipe, captions[: args.sensitivity_clips], clips, args.guidance),
    }
    print(json.dumps(figures, indent=2))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")
    if args.sheet:
        contact_sheet(clips[:12], captions[:12]).save(args.sheet)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tapvideo.tiny.evaluate", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--weights", type=Path, default=Path(__file__).parent.parent / "assets" / "wan_tiny")
    parser.add_argument("--clips", type=int, default=96, help="held-out captions to generate (default 96)")
    parser.add_argument(
        "--sensitivity-clips", type=int, default=16, help="of those, for the runs of fewer steps (default 16)"
    )
    parser.add_argument("--guidance", type=float, default=6.0)
    parser.add_argument("--seed", type=int, default=7, help="of the choice of captions")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet (PNG) here")
    return parser.parse_args(argv)


def held_out_captions(count: int, seed: int) -> list[str]:
    """Captions that training never sees."""
    rng = random.Random(seed)
    return [scenes.caption(scenes.sample_scene(rng, held_out=True)) for _ in range(count)]


def generate(
    pipe: WanPipeline, captions: list[str], *, guidance: float, steps: int, scheduler: str
) -> tuple[Float[Tensor, "b frames 3 h w"], float]:
    """Clips in [0, 1], clip i from seed i, and the seconds they took."""
    shift = pipe.scheduler.config.get("flow_shift") or pipe.scheduler.config.get("shift")
    if scheduler == "unipc":
        pipe.scheduler = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
        )
    else:
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    started, clips = time.perf_counter(), []
    for start in tqdm(range(0, len(captions), _BATCH), desc=f"{scheduler} {steps}"):
        part = captions[start : start + _BATCH]
        clips.append(
            pipe(
                part,
                height=scenes.SIZE,
                width=scenes.SIZE,
                num_frames=scenes.FRAMES,
                num_inference_steps=steps,
                guidance_scale=guidance,
                max_sequence_length=64,
                generator=[torch.Generator().manual_seed(start + i) for i in range(len(part))],
                output_type="pt",
            ).frames.cpu()
        )
    return torch.cat(clips), time.perf_counter() - started


def score(clips: Float[Tensor, "b frames 3 h w"], captions: list[str]) -> FolderScore:
    """Shares of right backgrounds, objects and motions."""
    return score_folder([score_clip(clip, caption) for clip, caption in zip(clips, captions, strict=True)])


def sensitivity(pipe: WanPipeline, captions: list[str], reference: Tensor, guidance: float) -> dict[str, float]:
    """Mean PSNR (dB) of runs of fewer steps, and of Euler's 50, against the 50 UniPC steps of the same seeds."""
    figures = {}
    for scheduler, steps in (("unipc", 10), ("unipc", 20), ("euler", 10), ("euler", 20), ("euler", 50)):
        clips, _ = generate(pipe, captions, guidance=guidance, steps=steps, scheduler=scheduler)
        mse = (clips - reference[: len(clips)]).square().flatten(1).mean(1)
        figures[f"{scheduler}-{steps}"] = round((-10 * torch.log10(mse.clamp_min(1e-10))).mean().item(), 2)
    return figures


def contact_sheet(
    clips: Float[Tensor, "b frames 3 h w"], captions: list[str], *, scale: int = 2, columns: int = 2
) -> Image.Image:
    """Five frames of every clip in a row, its caption above."""
    frames = torch.linspace(0, clips.shape[1] - 1, 5).long()
    tall, wide = clips.shape[-2] * scale, clips.shape[-1] * scale
    gap, band = 8, 16
    rows = -(-len(clips) // columns)
    sheet = Image.new("RGB", (columns * (5 * wide + gap), rows * (tall + band + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (clip, text) in enumerate(zip(clips, captions, strict=True)):
        x, y = (i % columns) * (5 * wide + gap), (i // columns) * (tall + band + gap)
        draw.text((x + 2, y + 2), text if len(text) < 100 else text[:97] + "...", fill="black")
        for j, t in enumerate(frames.tolist()):
            pixels = (clip[t].movedim(0, -1).clamp(0, 1) * 255).round().byte().numpy()
            picture = Image.fromarray(pixels).resize((wide, tall), Image.Resampling.NEAREST)
            sheet.paste(picture, (x + j * wide, y + band))
    return sheet


if __name__ == "__main__":
    main()
