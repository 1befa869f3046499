"""Attention of queries that every rank has to keys and values that are spread over ranks.

A companion's tokens (LTX-2's sound) attend to the video's. Each rank attends with all of their queries to its own share
of the keys; the parts, in fp32 with their log-sums, go to everyone, and every rank merges them alike. For m queries of
h heads and d numbers a head, a rank receives 4 (P - 1) m h (d + 1) bytes a layer, whatever the number of keys.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from tapvideo.parallel.attention import Kernel, SequenceAttention
from tapvideo.parallel.lse import attention_part, merge_parts


@torch.compiler.disable  # as `SequenceAttention`: which rows take part changes from step to step
def attend_to_spread(
    attention: SequenceAttention,
    layer: int,
    query: Float[Tensor, "b m h d"],
    key: Float[Tensor, "b n h d"],
    value: Float[Tensor, "b n h d"],
    kernel: Kernel,
) -> Float[Tensor, "b m h d"]:
    """Attention of the same queries on every rank to all ranks' tokens, those kept from earlier steps too.

    Args:
        attention: knows the ranks, the tokens that take part in this pass, and what is kept.
        layer: number of the layer, from 0.
        query: on every rank the same.
        key: of this rank's rows.
        value: of the same rows.
        kernel: computes attention where one rank has all keys.

    Raises:
        PeerLost: if another rank does not answer.
    """
    kept, own = attention.kept, attention.rows.own
    if kept is not None and own is None:
        kept.put(~layer, key, value)
    elif kept is not None and own is not None:
        key, value = kept.merge(~layer, own, key, value)
    comm = attention.comm
    if comm.size == 1:
        return kernel(query, key, value)
    output, total = attention_part(query, key, value)
    parts = torch.cat([output, total[..., None]], -1)
    everyone = comm.all_gather(parts[None], [1] * comm.size, what="companion")
    outputs, totals = everyone.split([query.shape[-1], 1], -1)
    return merge_parts(outputs, totals.squeeze(-1)).to(query.dtype)
