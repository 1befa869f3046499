"""How near one clip is to another, measured on raw frames and never on a compressed video."""

from tapvideo.metrics.alexnet_lpips import lpips
from tapvideo.metrics.clips import MetricUnavailable
from tapvideo.metrics.ffmpeg_vmaf import vmaf
from tapvideo.metrics.nvidia_flip import flip
from tapvideo.metrics.pixels import flicker_difference, frame_psnr, psnr, relative_l2, worst_frame_psnr
from tapvideo.metrics.registry import IDENTICAL, METRICS, Metric, evaluate
from tapvideo.metrics.structure import SSIM_WINDOW, ms_ssim, ms_ssim_scales, ssim

__all__ = [
    "IDENTICAL",
    "METRICS",
    "SSIM_WINDOW",
    "Metric",
    "MetricUnavailable",
    "evaluate",
    "flicker_difference",
    "flip",
    "frame_psnr",
    "lpips",
    "ms_ssim",
    "ms_ssim_scales",
    "psnr",
    "relative_l2",
    "ssim",
    "vmaf",
    "worst_frame_psnr",
]
