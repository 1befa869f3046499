"""FLIP: the difference a viewer sees when two images alternate on one screen."""

import numpy as np
from jaxtyping import Float
from torch import Tensor

from tapvideo.metrics.clips import MetricUnavailable, check_pair


def flip(video: Float[Tensor, "frames height width 3"], reference: Float[Tensor, "frames height width 3"]) -> float:
    """LDR-FLIP (Andersson et al. 2020), the mean over pixels and frames, 0 where equal and 1 at most.

    By NVIDIA's own `flip-evaluator`, at its default of 67 pixels to a degree (0.7 m from a 4K screen 0.7 m wide).
    Frames are judged one by one, so it does not see motion; values outside [0, 1] are clipped.

    Raises:
        ValueError: if the clips differ in shape or are not of floating point.
        MetricUnavailable: if the package is not installed.
    """
    check_pair(video, reference)
    try:
        from flip_evaluator import evaluate
    except ImportError as error:
        raise MetricUnavailable("flip-evaluator is not installed: pip install 'tapvideo[metrics]'") from error
    pairs = zip(video, reference, strict=True)
    means = [evaluate(_image(b), _image(a), "LDR", applyMagma=False)[1] for a, b in pairs]
    return sum(means) / len(means)


def _image(frame: Tensor) -> np.ndarray:
    return np.ascontiguousarray(frame.float().clamp(0, 1).cpu().numpy())
