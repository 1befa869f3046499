"""Which candidate every token gets, and the forecast that follows from it."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from tapvideo.chunks import by_pieces


def select_predictor(error: Float[Tensor, "b n p"], *, choice: str) -> Int64[Tensor, "b n"]:
    """Index of the best candidate of every token; ties go to the lowest index.

    Args:
        error: proxy errors.
        choice: `token`, each its own (TAP section 3), or `sample`, the one of least mean error for a whole clip.
    """
    judged = error.mean(1, keepdim=True) if choice == "sample" else error
    return judged.argmin(-1).expand(error.shape[:2])  # torch promises the first of equal minima


def forecast(
    hidden: Float[Tensor, "b n d"], residuals: Sequence[Float[Tensor, "b n d"]], weights: Float[Tensor, "#b #n k"]
) -> Float[Tensor, "b n d"]:
    """Forecast of the stack's output: hidden + sum_k weights_k residual_k, summed in fp32, in the dtype of `hidden`."""
    return by_pieces(_combine, hidden, weights, *residuals)


def _combine(hidden: Tensor, weights: Tensor, first: Tensor, *others: Tensor) -> Tensor:
    total = torch.addcmul(hidden.float(), weights[..., :1], first.float())
    for i, residual in enumerate(others, start=1):
        total.addcmul_(weights[..., i : i + 1], residual.float())
    return total
