"""VMAF through ffmpeg's libvmaf and the model that is built into it."""

import json
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import imageio_ffmpeg
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tapvideo.metrics.clips import MetricUnavailable, check_pair, check_side

VMAF_MODEL = "vmaf_v0.6.1"
_SMALLEST = 17  # pixels to a side: libvmaf refuses smaller frames without a word
_PIXELS = "yuv420p10le"
_BLACK, _RANGE, _NEUTRAL = 64, 876, 512  # of BT.709 luma and chroma in 10 bits


def vmaf(video: Float[Tensor, "frames height width 3"], reference: Float[Tensor, "frames height width 3"]) -> float:
    """VMAF 0.6.1 (Netflix), the mean over frames, 0 to 100; 97 to 100 where the clips are equal, less in still frames.

    The model was fitted to 1080p seen from three times the screen's height: on small clips it ranks, and its numbers
    mean less. It looks at luma alone, which reaches libvmaf uncompressed, as BT.709 in 10 bits.

    Raises:
        ValueError: if the clips differ in shape, are not of floating point or are too small.
        MetricUnavailable: if this ffmpeg has no libvmaf.
    """
    check_pair(video, reference)
    check_side("VMAF", video, _SMALLEST)
    with TemporaryDirectory(prefix="tapvideo-vmaf-") as name:
        folder = Path(name)
        _write_luma(folder / "video.yuv", video)
        _write_luma(folder / "reference.yuv", reference)
        _run(folder, height=video.shape[1], width=video.shape[2])
        log = json.loads((folder / "log.json").read_text(encoding="utf-8"))
    if len(log["frames"]) != len(video):
        raise RuntimeError(f"libvmaf scored {len(log['frames'])} of {len(video)} frames")
    return float(log["pooled_metrics"]["vmaf"]["mean"])


def _run(folder: Path, *, height: int, width: int) -> None:
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    raw = ["-f", "rawvideo", "-pix_fmt", _PIXELS, "-s", f"{width}x{height}", "-r", "25"]
    # File names of our own, inside the folder: nothing to be escaped in the filter's options.
    score = f"[0:v][1:v]libvmaf=model=version={VMAF_MODEL}:log_fmt=json:log_path=log.json"
    command = [ffmpeg, "-nostdin", "-v", "error", *raw, "-i", "video.yuv", *raw, "-i", "reference.yuv"]
    command += ["-lavfi", score, "-f", "null", "-"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    if "No such filter" in done.stderr:
        what = f"{Path(ffmpeg).name} is built without libvmaf"
        raise MetricUnavailable(f"{what}: unset IMAGEIO_FFMPEG_EXE for the one that imageio-ffmpeg brings")
    if done.returncode or not (folder / "log.json").is_file():
        reason = " ".join(done.stderr.split()) or "no reason given"
        raise RuntimeError(f"libvmaf failed with code {done.returncode}: {reason}")


def _write_luma(path: Path, frames: Tensor) -> None:
    """Raw planar frames whose chroma is grey."""
    height, width = frames.shape[1:3]
    chroma = np.full(2 * ((height + 1) // 2) * ((width + 1) // 2), _NEUTRAL, "<u2").tobytes()
    weights = torch.tensor([0.2126, 0.7152, 0.0722], dtype=torch.float64, device=frames.device)
    with path.open("wb") as file:
        for frame in frames:
            luma = frame.double().clamp(0, 1) @ weights
            file.write((_BLACK + _RANGE * luma).round().cpu().numpy().astype("<u2").tobytes())
            file.write(chroma)
