"""Which metrics there are, and all that are asked for at once."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tapvideo.metrics.alexnet_lpips import lpips
from tapvideo.metrics.clips import MetricUnavailable, check_pair
from tapvideo.metrics.ffmpeg_vmaf import vmaf
from tapvideo.metrics.nvidia_flip import flip
from tapvideo.metrics.pixels import flicker_difference, psnr, worst_frame_psnr
from tapvideo.metrics.structure import MS_SSIM_WEIGHTS, ms_ssim, ms_ssim_scales, ssim

IDENTICAL = "infinite: identical to the reference"
"""Why a PSNR is None though nothing is amiss."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A number for how near a clip is to its reference."""

    name: str
    label: str
    """What the reader calls it."""
    unit: str
    """Empty for a plain number."""
    higher_is_better: bool
    compute: Callable[[Tensor, Tensor], float]
    label_for: Callable[[int, int], str] | None = None
    """The label for frames of a height and width, where what is computed depends on it."""

    def title(self, height: int, width: int) -> str:
        """What the reader calls it on frames of this size."""
        return self.label_for(height, width) if self.label_for else self.label


def _ms_ssim_label(height: int, width: int) -> str:
    scales, all_scales = ms_ssim_scales(height, width), len(MS_SSIM_WEIGHTS)
    return "MS-SSIM" if scales in (0, all_scales) else f"MS-SSIM ({scales} of {all_scales} scales)"


_ALL = (
    Metric("psnr", "PSNR", "dB", True, psnr),
    Metric("psnr_min", "PSNR, worst frame", "dB", True, worst_frame_psnr),
    Metric("ssim", "SSIM", "", True, ssim),
    Metric("ms_ssim", "MS-SSIM", "", True, ms_ssim, _ms_ssim_label),
    Metric("vmaf", "VMAF", "", True, vmaf),
    Metric("flip", "FLIP", "", False, flip),
    Metric("lpips", "LPIPS", "", False, lpips),
    Metric("flicker", "Flicker difference", "", False, flicker_difference),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}


def evaluate(
    video: Float[Tensor, "frames height width 3"],
    reference: Float[Tensor, "frames height width 3"],
    names: Sequence[str] = tuple(METRICS),
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Metrics of a clip against its reference, on raw frames with values in [0, 1].

    A value is a finite number or None, ready for json, and every None has its reason. PSNR of identical clips is
    infinite: None, for the reason `IDENTICAL`. A metric that fails has its error for a reason, and the others go on.

    Returns:
        Values by name, in the order asked for, and the reason of each that is None.

    Raises:
        ValueError: if a name is unknown or the clips cannot be compared at all.
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise ValueError(f"unknown metrics {unknown}; allowed: {list(METRICS)}")
    check_pair(video, reference)
    not_finite = [who for who, clip in (("clip", video), ("reference", reference)) if not clip.isfinite().all()]
    if not_finite:
        reason = f"the {' and the '.join(not_finite)} has NaN or infinite values"
        return dict.fromkeys(names), dict.fromkeys(names, reason)
    values: dict[str, float | None] = {}
    not_computed: dict[str, str] = {}
    for name in names:
        values[name], reason = _compute(METRICS[name], video, reference)
        if reason:
            not_computed[name] = reason
    return values, not_computed


def _compute(metric: Metric, video: Tensor, reference: Tensor) -> tuple[float | None, str]:
    try:
        value = metric.compute(video, reference)
    except (MetricUnavailable, ValueError) as error:
        return None, str(error)
    except Exception as error:  # whatever goes wrong in one metric, a long comparison keeps the others
        return None, f"{type(error).__name__}: {error}"
    if value == math.inf:
        return None, IDENTICAL
    return (value, "") if math.isfinite(value) else (None, f"the result is {value}")
