"""Metrics that are a formula over pixels: PSNR, flicker; and the relative L2 of latents."""

import math

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import mse_loss

from tapvideo.metrics.clips import check_pair


def psnr(video: Float[Tensor, "frames height width 3"], reference: Float[Tensor, "frames height width 3"]) -> float:
    """Peak signal-to-noise ratio in dB for values in [0, 1]; infinite where the clips are equal.

    The squared error is pooled over the whole clip: a mean of per-frame values would let one exact frame hide the rest.

    Raises:
        ValueError: if the clips differ in shape or are not of floating point.
    """
    errors = _mean_squares(video, reference)
    return _decibels(sum(errors) / len(errors))


def frame_psnr(
    video: Float[Tensor, "frames height width 3"], reference: Float[Tensor, "frames height width 3"]
) -> list[float]:
    """PSNR of every frame in dB; infinite where a frame is equal.

    Raises:
        ValueError: if the clips differ in shape or are not of floating point.
    """
    return [_decibels(error) for error in _mean_squares(video, reference)]


def worst_frame_psnr(
    video: Float[Tensor, "frames height width 3"], reference: Float[Tensor, "frames height width 3"]
) -> float:
    """PSNR of the frame that is furthest off, in dB; infinite where the clips are equal.

    Raises:
        ValueError: if the clips differ in shape or are not of floating point.
    """
    return _decibels(max(_mean_squares(video, reference)))


def flicker_difference(
    video: Float[Tensor, "frames height width 3"], reference: Float[Tensor, "frames height width 3"]
) -> float:
    """Mean absolute difference between the two clips' frame-to-frame differences, in values of [0, 1]; 0 where equal.

    `mean |(v[t+1] - v[t]) - (r[t+1] - r[t])|`: what changes from frame to frame otherwise than in the reference, be it
    brightness that flickers, texture that boils or motion that stops. An error that stays the same does not count.

    Raises:
        ValueError: if the clips differ in shape, are not of floating point or have a single frame.
    """
    check_pair(video, reference)
    if len(video) < 2:
        raise ValueError("a clip of one frame cannot flicker; allowed: 2 frames or more")
    steps = zip(video[1:], video, reference[1:], reference, strict=False)
    # One frame at a time: in double precision at once, a long clip would need several times its own memory.
    sums = [((a.double() - b.double()) - (c.double() - d.double())).abs().mean().item() for a, b, c, d in steps]
    return sum(sums) / len(sums)


def relative_l2(latents: Float[Tensor, "*shape"], reference: Float[Tensor, "*shape"]) -> float:
    """`||latents - reference|| / ||reference||` over all values, in double precision; 0 where equal.

    Raises:
        ValueError: if shapes differ, a value is not finite, or the reference is zero throughout.
    """
    if latents.shape != reference.shape:
        raise ValueError(f"cannot compare latents of {tuple(latents.shape)} with latents of {tuple(reference.shape)}")
    ours, theirs = latents.double(), reference.double()
    norm = theirs.norm().item()
    error = (ours - theirs).norm().item()
    if not math.isfinite(error) or not math.isfinite(norm):
        raise ValueError("the latents have NaN or infinite values; they have no relative error")
    if not norm:
        raise ValueError("the reference latents are zero throughout; nothing is relative to them")
    return error / norm


def _mean_squares(video: Tensor, reference: Tensor) -> list[float]:
    check_pair(video, reference)
    return [mse_loss(a.double(), b.double()).item() for a, b in zip(video, reference, strict=True)]


def _decibels(mean_square: float) -> float:
    return -10 * math.log10(mean_square) if mean_square else math.inf
