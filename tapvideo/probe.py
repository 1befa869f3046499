"""Errors of every candidate on the probe, from inner products: one pass over memory, whatever the number of candidates.

With e_k = h_k - h (anchor minus true probe) a candidate with weights w misses h by sum_k w_k e_k + (sum_k w_k - 1) h.
Its squared length and its product with h are quadratic forms in the (K+1) x (K+1) Gram matrix of [e_1 .. e_K, h], so no
candidate's forecast is ever materialised. Differences are taken before products, so small errors do not cancel.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tapvideo.chunks import is_one_piece, token_chunks

_TINY = 1e-20


def gram(probe: Float[Tensor, "b n d"], anchors: Sequence[Float[Tensor, "b n d"]]) -> Float[Tensor, "b n k1 k1"]:
    """Inner products per token of [anchor_1 - probe, .., anchor_K - probe, probe], in fp32."""
    batch, tokens, dim = probe.shape
    size = len(anchors) + 1
    if is_one_piece(probe):
        vectors = _differences(probe.flatten(0, 1), [anchor.flatten(0, 1) for anchor in anchors])
        return torch.bmm(vectors, vectors.mT).view(batch, tokens, size, size)
    out = torch.empty(batch, tokens, size, size, dtype=torch.float32, device=probe.device)
    for row in range(batch):
        for part in token_chunks(tokens, dim, probe.device):
            vectors = _differences(probe[row, part], [anchor[row, part] for anchor in anchors])
            torch.bmm(vectors, vectors.mT, out=out[row, part])
    return out


def _differences(probe: Float[Tensor, "t d"], anchors: Sequence[Float[Tensor, "t d"]]) -> Float[Tensor, "t k1 d"]:
    """[anchor_1 - probe, .., anchor_K - probe, probe] of every token."""
    size = len(anchors) + 1
    vectors = torch.empty(len(probe), size, probe.shape[1], dtype=torch.float32, device=probe.device)
    *places, own = vectors.unbind(1)
    own.copy_(probe)
    for anchor, place in zip(anchors, places, strict=True):
        torch.sub(anchor, own, out=place)
    return vectors


@dataclass(frozen=True, slots=True)
class Forms:
    """Candidates' weights, as what their errors are read off from inner products with; the same for every token."""

    miss: Float[Tensor, "kk p"]
    """Of all inner products: the squared length of forecast - h."""
    along: Float[Tensor, "k1 p"]
    """Of those with h: (forecast - h) . h."""


def forms(bank: Float[Tensor, "p k"]) -> Forms:
    """Of candidates' weights."""
    u = torch.cat([bank, bank.sum(1, keepdim=True) - 1], dim=1).float()  # [p, k + 1]
    return Forms((u[:, :, None] * u[:, None, :]).flatten(1).T, u.T)


def proxy_error(products: Float[Tensor, "*t k1 k1"], candidates: Forms, *, proxy: str) -> Float[Tensor, "*t p"]:
    """Distance of every candidate's probe forecast from the true probe, per token; unitless.

    Args:
        products: `gram` of the probe and its anchors.
        candidates: `forms` of their weights.
        proxy: `cosine`, 1 - cos(forecast, h) (TAP section 3), or `l2`, |forecast - h| / |h|.
    """
    miss = (products.flatten(-2) @ candidates.miss).clamp_min_(0)  # |forecast - h|^2
    own = products[..., -1, -1, None]  # |h|^2
    if proxy == "l2":
        return torch.sqrt(miss / own.clamp_min(_TINY))
    along = products[..., -1, :] @ candidates.along
    # 1 - cos = sin^2 / (1 + cos) with |f x h|^2 = |f - h|^2 |h|^2 - ((f - h) . h)^2: no difference of near-equals
    dot = own + along
    length = (dot + along).add_(miss).mul_(own).clamp_min_(_TINY).sqrt_()  # |f| |h|
    cross = (miss * own).addcmul_(along, along, value=-1).clamp_min_(0)
    near = cross.div_((length + dot).mul_(length).clamp_min_(_TINY))
    return torch.where(dot > 0, near, 1 - dot / length)
