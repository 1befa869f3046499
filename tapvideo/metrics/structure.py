"""Structural similarity, on one scale and on several."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d

from tapvideo.metrics.clips import check_pair, check_side

SSIM_WINDOW = 11  # pixels to a side of SSIM's Gaussian window
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of Wang et al. 2003, finest scale first
_SIGMA = 1.5
_LUMINANCE, _CONTRAST = 0.01**2, 0.03**2  # what keeps the fractions from 0 / 0


def ssim(video: Float[Tensor, "frames height width 3"], reference: Float[Tensor, "frames height width 3"]) -> float:
    """Structural similarity (Wang et al. 2004) for values in [0, 1], the mean over frames; 1 where the clips are equal.

    Means over the three channels and the places where the window fits whole, as in the paper and in scikit-image with
    `gaussian_weights=True, use_sample_covariance=False`; torchmetrics also counts places on mirrored borders.

    Raises:
        ValueError: if the clips differ in shape, are not of floating point or are smaller than the window.
    """
    check_pair(video, reference)
    check_side("SSIM", video, SSIM_WINDOW)
    # One frame at a time: at once, a long clip would need many times its own memory.
    pairs = zip(video, reference, strict=True)
    return sum(_similarity(_planes(a), _planes(b))[0] for a, b in pairs) / len(video)


def ms_ssim(video: Float[Tensor, "frames height width 3"], reference: Float[Tensor, "frames height width 3"]) -> float:
    """Multi-scale structural similarity (Wang et al. 2003) for values in [0, 1], the mean over frames; 1 where equal.

    Five scales need frames of 176 pixels to the smaller side. On smaller ones the coarsest scales are left out and the
    weights of the rest scaled to sum to 1, as `ms_ssim_scales` says: values on different numbers of scales are not to
    be compared. A negative mean of a scale counts as 0.

    Raises:
        ValueError: if the clips differ in shape, are not of floating point or are too small for two scales.
    """
    check_pair(video, reference)
    check_side("MS-SSIM", video, 2 * SSIM_WINDOW)
    weights = _weights(ms_ssim_scales(*video.shape[1:3]))
    pairs = zip(video, reference, strict=True)
    return sum(_frame_ms_ssim(_planes(a), _planes(b), weights) for a, b in pairs) / len(video)


def ms_ssim_scales(height: int, width: int) -> int:
    """Scales, each half the size of the one before, on which SSIM's window fits frames of this size; 5 at most."""
    side = min(height, width)
    return sum(side >> scale >= SSIM_WINDOW for scale in range(len(MS_SSIM_WEIGHTS)))


def _weights(num_scales: int) -> tuple[float, ...]:
    kept = MS_SSIM_WEIGHTS[:num_scales]
    if num_scales == len(MS_SSIM_WEIGHTS):
        return kept  # as published: they sum to 1.0001
    return tuple(weight / sum(kept) for weight in kept)


def _frame_ms_ssim(
    frame: Float[Tensor, "3 height width"], reference: Float[Tensor, "3 height width"], weights: tuple[float, ...]
) -> float:
    product = 1.0
    for scale, weight in enumerate(weights):
        if scale:
            frame, reference = avg_pool2d(frame, 2), avg_pool2d(reference, 2)
        similarity, contrast = _similarity(frame, reference)
        is_coarsest = scale == len(weights) - 1
        product *= max(similarity if is_coarsest else contrast, 0.0) ** weight
    return product


def _similarity(
    frame: Float[Tensor, "3 height width"], reference: Float[Tensor, "3 height width"]
) -> tuple[float, float]:
    """SSIM, and its factor of contrast and structure alone."""
    maps = (frame, reference, frame * frame, reference * reference, frame * reference)
    mean, other_mean, square, other_square, product = (_blur(values) for values in maps)
    variances = square - mean * mean + other_square - other_mean * other_mean
    covariance = product - mean * other_mean
    contrast = (2 * covariance + _CONTRAST) / (variances + _CONTRAST)
    luminance = (2 * mean * other_mean + _LUMINANCE) / (mean * mean + other_mean * other_mean + _LUMINANCE)
    return (luminance * contrast).mean().item(), contrast.mean().item()


def _blur(planes: Float[Tensor, "3 height width"]) -> Float[Tensor, "3 _height _width"]:
    """Gaussian window where it fits whole: rows, then columns, 40 times faster than as a convolution in doubles."""
    offsets = range(-(SSIM_WINDOW // 2), SSIM_WINDOW // 2 + 1)
    window = [math.exp(-0.5 * (offset / _SIGMA) ** 2) for offset in offsets]
    for dim in (1, 2):
        length = planes.shape[dim] - SSIM_WINDOW + 1
        blurred = torch.zeros_like(planes.narrow(dim, 0, length))
        for start, weight in enumerate(window):
            blurred.add_(planes.narrow(dim, start, length), alpha=weight / sum(window))
        planes = blurred
    return planes


def _planes(image: Float[Tensor, "height width 3"]) -> Float[Tensor, "3 height width"]:
    # In double precision: variances are differences of squares, and in single the fourth decimal is already wrong.
    return image.double().permute(2, 0, 1).contiguous()
