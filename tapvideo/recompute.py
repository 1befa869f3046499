"""Which tokens are stale: so badly forecast that they run through the blocks after all."""

import math

from jaxtyping import Float, Int64
from torch import Tensor

_ROUNDING = 1e-9


def stale_tokens(error: Float[Tensor, " tokens"], *, threshold: float, budget: float) -> Int64[Tensor, " stale"]:
    """Positions, ascending, of the tokens whose proxy error reaches `threshold`, the worst `budget` share at most.

    Of equal errors the lowest position is the first to be stale, so that every rank and every device picks alike.

    Args:
        error: of all tokens, in the order of the sequence.
        threshold: in the proxy's units; 0 is reached by every token.
        budget: share of all tokens, 0 to 1.
    """
    most = math.floor(budget * len(error) + _ROUNDING)
    stale = (error >= threshold).nonzero().squeeze(1)
    if len(stale) <= most:
        return stale
    worst = error[stale].argsort(descending=True, stable=True)[:most]
    return stale[worst].sort().values
