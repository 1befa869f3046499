"""How near one clip is to another, measured on raw frames and never on a compressed video."""

import math

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import mse_loss
from torchmetrics.functional.image import structural_similarity_index_measure

SSIM_WINDOW = 11  # pixels to a side of SSIM's Gaussian window


def psnr(video: Float[Tensor, "frames height width 3"], reference: Float[Tensor, "frames height width 3"]) -> float:
    """Peak signal-to-noise ratio in dB for values in [0, 1]; infinite where the clips are equal.

    The squared error is pooled over the whole clip: a mean of per-frame values would let one exact frame hide the rest.

    Raises:
        ValueError: if the clips differ in shape or are not of floating point.
    """
    _check_pair(video, reference)
    pairs = zip(video, reference, strict=True)
    mean_square = sum(mse_loss(a.double(), b.double()).item() for a, b in pairs) / len(video)
    return -10 * math.log10(mean_square) if mean_square else math.inf


def ssim(video: Float[Tensor, "frames height width 3"], reference: Float[Tensor, "frames height width 3"]) -> float:
    """Structural similarity (Wang et al. 2004) for values in [0, 1], the mean over frames; 1 where the clips are equal.

    Raises:
        ValueError: if the clips differ in shape, are not of floating point or are smaller than the window.
    """
    _check_pair(video, reference)
    if min(video.shape[1:3]) < SSIM_WINDOW:
        size = tuple(video.shape[1:3])
        raise ValueError(f"frames of {size} pixels have no SSIM; allowed: {SSIM_WINDOW} or more to a side")
    # One frame at a time: at once, a long clip would need many times its own memory.
    pairs = zip(video, reference, strict=True)
    return sum(_frame_ssim(a, b) for a, b in pairs) / len(video)


def _frame_ssim(frame: Float[Tensor, "height width 3"], reference: Float[Tensor, "height width 3"]) -> float:
    planes, reference_planes = (image.double().permute(2, 0, 1)[None] for image in (frame, reference))
    # In double precision: variances are differences of squares, and in single the fourth decimal is already wrong.
    value = structural_similarity_index_measure(planes, reference_planes, data_range=1.0)
    assert isinstance(value, Tensor)
    return value.item()


def _check_pair(video: Tensor, reference: Tensor) -> None:
    if video.shape != reference.shape:
        raise ValueError(f"cannot compare a clip of shape {tuple(video.shape)} with one of {tuple(reference.shape)}")
    if video.ndim != 4 or video.shape[-1] != 3 or not len(video):
        raise ValueError(f"a clip has shape [frames, height, width, 3], not {tuple(video.shape)}")
    if not (video.is_floating_point() and reference.is_floating_point()):
        raise ValueError(f"a clip has floating-point values in [0, 1], not {video.dtype} and {reference.dtype}")
