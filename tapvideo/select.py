"""Which candidate every token gets, and the forecast that follows from it."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from tapvideo.chunks import token_chunks


def select_predictor(
    error: Float[Tensor, "b n p"], *, choice: str
) -> tuple[Int64[Tensor, "b n"], Float[Tensor, "b n"]]:
    """Index and error of the best candidate of every token; ties go to the lowest index.

    Args:
        error: proxy errors.
        choice: `token`, each its own (TAP section 3), or `sample`, the one of least mean error for a whole clip.
    """
    judged = error.mean(1, keepdim=True) if choice == "sample" else error
    best = judged.argmin(-1).expand(error.shape[:2])  # torch promises the first of equal minima
    return best, error.gather(-1, best[..., None]).squeeze(-1)


def forecast(
    hidden: Float[Tensor, "b n d"], residuals: Sequence[Float[Tensor, "b n d"]], weights: Float[Tensor, "#b #n k"]
) -> Float[Tensor, "b n d"]:
    """Forecast of the stack's output: hidden + sum_k weights_k residual_k, summed in fp32, in the dtype of `hidden`."""
    batch, tokens, dim = hidden.shape
    weights = weights.expand(batch, tokens, -1)
    out = torch.empty_like(hidden)
    for row in range(batch):
        for part in token_chunks(tokens, dim, hidden.device):
            out[row, part] = _combine(hidden[row, part], [r[row, part] for r in residuals], weights[row, part])
    return out


def _combine(hidden: Tensor, residuals: Sequence[Tensor], weights: Tensor) -> Tensor:
    total = torch.addcmul(hidden.float(), weights[:, :1], residuals[0].float())
    for i, residual in enumerate(residuals[1:], start=1):
        total.addcmul_(weights[:, i : i + 1], residual.float())
    return total
