"""Attention over a part of the keys, and the merge of such parts into the whole."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_SCORES = 1 << 24  # scores of one piece: 64 MiB in fp32


def attention_part(
    query: Float[Tensor, "b n h d"],
    key: Float[Tensor, "b m h d"],
    value: Float[Tensor, "b m h d"],
    mask: Bool[Tensor, "b m"] | None = None,
) -> tuple[Float[Tensor, "b n h d"], Float[Tensor, "b n h"]]:
    """Attention over these keys alone, in fp32, and the log of the sum of the exponentials; no key gives -inf.

    Plain matrix products: torch has no public attention that returns this log-sum on every device.

    Args:
        query: of the tokens that attend.
        key: of the tokens that are attended to.
        value: theirs too.
        mask: which keys count; None is all.
    """
    batch, tokens, heads, dim = query.shape
    out = query.new_zeros(query.shape, dtype=torch.float32)
    total = query.new_full((batch, tokens, heads), -math.inf, dtype=torch.float32)
    if not key.shape[1]:
        return out, total
    keys, values = key.float().permute(0, 2, 3, 1), value.float().transpose(1, 2)
    piece = max(1, _SCORES // (batch * heads * key.shape[1]))
    for start in range(0, tokens, piece):
        part = slice(start, start + piece)
        scores = query[:, part].float().transpose(1, 2) * dim**-0.5 @ keys
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], -math.inf)
        lse = torch.logsumexp(scores, -1)
        base = lse if mask is None else lse.clamp_min(torch.finfo(lse.dtype).min)  # -inf less -inf is no number
        out[:, part] = ((scores - base[..., None]).exp() @ values).transpose(1, 2)
        total[:, part] = lse.transpose(1, 2)
    return out, total


def merge_parts(
    outputs: Float[Tensor, "parts b n h d"], totals: Float[Tensor, "parts b n h"]
) -> Float[Tensor, "b n h d"]:
    """Attention over all keys from attention over disjoint parts of them."""
    return (torch.softmax(totals, 0)[..., None] * outputs).sum(0)
