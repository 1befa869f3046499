"""What every metric asks of a pair of clips."""

from torch import Tensor


class MetricUnavailable(RuntimeError):
    """A metric cannot be computed here at all: a package, a file or a build of ffmpeg is missing; says which."""


def check_pair(video: Tensor, reference: Tensor) -> None:
    """Two clips of one shape `[frames, height, width, 3]` and of floating point.

    Raises:
        ValueError: if they are not.
    """
    if video.shape != reference.shape:
        raise ValueError(f"cannot compare a clip of shape {tuple(video.shape)} with one of {tuple(reference.shape)}")
    if video.ndim != 4 or video.shape[-1] != 3 or not video.numel():
        raise ValueError(f"a clip has shape [frames, height, width, 3], not {tuple(video.shape)}")
    if not (video.is_floating_point() and reference.is_floating_point()):
        raise ValueError(f"a clip has floating-point values in [0, 1], not {video.dtype} and {reference.dtype}")


def check_side(name: str, frames: Tensor, smallest: int) -> None:
    """Frames large enough for a metric's windows.

    Raises:
        ValueError: if a side is smaller than `smallest` pixels.
    """
    height, width = frames.shape[1:3]
    if min(height, width) < smallest:
        raise ValueError(f"frames of {(height, width)} pixels have no {name}; allowed: {smallest} or more to a side")
