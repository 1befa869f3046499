"""Muon: momentum with orthogonalised matrix updates (Jordan et al., 2024), for matrices and convolution kernels."""

import torch
from torch import Tensor, nn

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # quintic iteration of the Muon write-up


def orthogonalize(update: Tensor, *, steps: int = 5) -> Tensor:
    """The semi-orthogonal matrices nearest to a batch of updates, approximated by quintic Newton-Schulz iteration."""
    a, b, c = _NEWTON_SCHULZ
    x = update.bfloat16()
    tall = x.size(-2) > x.size(-1)
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(update.dtype)


class Muon(torch.optim.Optimizer):
    """Muon over parameters of two or more dims; a kernel is seen as a matrix [out, everything else]."""

    def __init__(self, params: list[nn.Parameter], lr: float, *, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - knows no closure
        """One update of every parameter that has a gradient; equal shapes are orthogonalised as one batch."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for same in by_shape.values():
                self._step_same_shape(same, group)

    def _step_same_shape(self, params: list[nn.Parameter], group: dict) -> None:
        looked_ahead = []
        for p in params:
            buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
            assert p.grad is not None
            buffer.lerp_(p.grad, 1 - group["momentum"])
            looked_ahead.append(p.grad.lerp(buffer, group["momentum"]).flatten(1))
        updates = orthogonalize(torch.stack(looked_ahead))
        rows, columns = updates.shape[-2:]
        scale = group["lr"] * max(1.0, rows / columns) ** 0.5
        for p, update in zip(params, updates, strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update.view_as(p), alpha=-scale)


def split_parameters(module: nn.Module, *, inside: str = "") -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters for Muon (matrices and kernels whose name contains `inside`) and the rest, for AdamW."""
    matrices, rest = [], []
    for name, p in module.named_parameters():
        if p.requires_grad:
            is_matrix = p.ndim >= 2 and p.shape[0] > 1 and name.endswith("weight") and inside in name
            (matrices if is_matrix else rest).append(p)
    return matrices, rest
