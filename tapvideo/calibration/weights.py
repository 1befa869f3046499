"""Weights over anchors that err least on calibration clips: least squares, solved from inner products alone.

A calibration knows the inner products of the stack's residuals of all branches and steps, averaged over clips: the
Gram matrix. The best linear forecast of any step from any anchors follows from it, so one small matrix serves every
schedule. What the sampler sees is not the branches but their guided sum, sum_b mix_b v_b; weights of all branches are
therefore fitted together, to that sum (guidance * cond + (1 - guidance) * uncond), in which errors may cancel.
"""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

_RIDGE = 1e-6  # of the mean square of an anchor: late anchors differ by less than a thousandth


def fit(
    gram: Float64[Tensor, "m m"],
    mix: Float64[Tensor, " b"],
    anchors: Int64[Tensor, "q k"],
    targets: Int64[Tensor, " q"],
) -> Float64[Tensor, "q b k"]:
    """Weights of every branch's anchors that forecast the guided sum of residuals at the target steps best.

    A branch that counts nothing in the sum, as where guidance is 1, is forecast for its own sake.

    Args:
        gram: inner products of residuals, branch by branch, step by step: m = b * steps.
        mix: what each branch counts in the guided sum.
        anchors: steps of the anchors, newest first, of every problem.
        targets: step to forecast, of every problem.
    """
    branches, steps = len(mix), len(gram) // len(mix)
    if branches > 1 and (mix == 0).any():
        found = torch.empty(len(targets), branches, anchors.shape[1], dtype=gram.dtype)
        for part in (mix != 0, *torch.eye(branches, dtype=torch.bool)[mix == 0]):
            rows = part.repeat_interleave(steps)
            own = torch.where(mix[part] == 0, 1.0, mix[part])
            found[:, part] = fit(gram[rows][:, rows], own, anchors, targets)
        return found
    offsets = torch.arange(branches) * steps
    known = (anchors[:, None, :] + offsets[:, None]).flatten(1)  # [q, b k]
    scale = mix.repeat_interleave(anchors.shape[1])
    normal = gram[known[:, :, None], known[:, None, :]] * scale[:, None] * scale
    ridge = _RIDGE * normal.diagonal(dim1=1, dim2=2).mean(1)
    normal = normal + ridge[:, None, None] * torch.eye(normal.shape[-1], dtype=normal.dtype)
    wanted = (targets[:, None] + offsets)[:, None, :]  # [q, 1, b]
    right = (gram[known[:, :, None], wanted] * mix).sum(-1) * scale
    return torch.linalg.solve(normal, right).unflatten(1, (branches, -1))


def errors(
    weights: Float64[Tensor, "q b k"],
    mix: Float64[Tensor, " b"],
    anchors: Int64[Tensor, "q k"],
    targets: Int64[Tensor, " q"],
    num_steps: int,
) -> Float64[Tensor, "q m"]:
    """Each forecast's guided error, residual minus forecast, as coefficients over all residuals of the Gram matrix."""
    found = torch.zeros(len(targets), len(mix) * num_steps, dtype=weights.dtype)
    for branch, share in enumerate(mix.tolist()):
        found.scatter_add_(1, anchors + branch * num_steps, -share * weights[:, branch])
        found[torch.arange(len(targets)), targets + branch * num_steps] += share
    return found
