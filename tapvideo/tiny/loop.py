"""The training loop that the embedded model's parts share: schedule, averaging, checkpoints, several processes."""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

_CHECKPOINT_SECONDS = 60.0


@dataclass(slots=True)
class TrainingRun:
    """One part's training: what learns, how, for how long, and where it is kept.

    `minutes` is the whole budget: a run that is taken up again goes on from its checkpoint and spends what is left.
    """

    name: str
    folder: Path
    minutes: float
    module: nn.Module
    optimizers: list[torch.optim.Optimizer]
    loss_step: Callable[[], tuple[Tensor, str]]
    ema_decay: float = 0.998
    hold: float = 0.5  # share of the budget before the learning rate starts to fall
    step: int = 0
    elapsed: float = 0.0
    ema: dict[str, Tensor] = field(default_factory=dict)

    @property
    def checkpoint(self) -> Path:
        """Where the run's state lies."""
        return self.folder / f"{self.name}.safetensors"

    def rate(self) -> float:
        """Learning-rate factor: a short warm-up, a plateau, a linear fall to 2 %."""
        progress = self.elapsed / (60 * self.minutes)
        fall = 1.0 if progress < self.hold else max(0.02, (1 - progress) / (1 - self.hold))
        return min(1.0, (self.step + 1) / 40) * fall


def run(training: TrainingRun) -> dict[str, Tensor]:
    """Train until the budget is spent and return the averaged weights."""
    if training.checkpoint.exists():
        load(training)
    training.ema = training.ema or {k: v.detach().clone() for k, v in training.module.state_dict().items()}
    base_rates = [[g["lr"] for g in o.param_groups] for o in training.optimizers]
    started, saved = time.monotonic() - training.elapsed, time.monotonic()
    bar = tqdm(
        desc=training.name, unit="step", initial=training.step, disable=_rank() != 0, file=sys.stderr, mininterval=5
    )
    while not _spent(training):
        _set_rates(training, base_rates)
        words = _step(training)
        training.step, training.elapsed = training.step + 1, time.monotonic() - started
        bar.set_postfix_str(f"{words}, {training.elapsed / 60:.1f} of {training.minutes:g} min", refresh=False)
        bar.update()
        if time.monotonic() - saved > _CHECKPOINT_SECONDS:
            save(training)
            saved = time.monotonic()
    bar.close()
    save(training)
    return training.ema


def _step(training: TrainingRun) -> str:
    loss, words = training.loss_step()
    if not torch.isfinite(loss):
        what = f"{training.name}: the loss is {loss.item()} at step {training.step}"
        raise FloatingPointError(f"{what}; take up an earlier checkpoint or lower the rate")
    for optimizer in training.optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    params = [p for o in training.optimizers for g in o.param_groups for p in g["params"] if p.grad is not None]
    _average_gradients(params)
    nn.utils.clip_grad_norm_(params, 1.0)
    for optimizer in training.optimizers:
        optimizer.step()
    decay = min(training.ema_decay, (1 + training.step) / (10 + training.step))
    with torch.no_grad():
        for name, value in training.module.state_dict().items():
            if value.is_floating_point():
                training.ema[name].lerp_(value, 1 - decay)
            else:
                training.ema[name].copy_(value)
    return words


def _set_rates(training: TrainingRun, base_rates: list[list[float]]) -> None:
    for optimizer, rates in zip(training.optimizers, base_rates, strict=True):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * training.rate()


def _spent(training: TrainingRun) -> bool:
    device = next(training.module.parameters()).device
    spent = torch.tensor(float(training.elapsed >= 60 * training.minutes), device=device)
    if dist.is_initialized():  # all processes stop at the same step
        dist.all_reduce(spent, op=dist.ReduceOp.MAX)
    return bool(spent.item())


def _average_gradients(params: list[nn.Parameter]) -> None:
    if not dist.is_initialized():
        return
    grads = [p.grad for p in params if p.grad is not None]
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for grad, mean in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(mean.view_as(grad))


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def save(training: TrainingRun) -> None:
    """Write weights, averages and optimizer states as one safetensors file, whole or not at all."""
    if _rank() != 0:
        return
    tensors = {f"model/{k}": v for k, v in training.module.state_dict().items()}
    tensors |= {f"ema/{k}": v for k, v in training.ema.items()}
    for i, optimizer in enumerate(training.optimizers):
        for j, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{i}/{j}/{k}": torch.as_tensor(v) for k, v in state.items()}
    training.folder.mkdir(parents=True, exist_ok=True)
    partial = training.checkpoint.with_suffix(".partial")
    meta = {"progress": json.dumps({"step": training.step, "elapsed": training.elapsed})}
    save_file({k: v.detach().contiguous().clone() for k, v in tensors.items()}, partial, metadata=meta)
    os.replace(partial, training.checkpoint)


def load(training: TrainingRun) -> None:
    """Take a run up where its checkpoint left it."""
    with safe_open(training.checkpoint, framework="pt") as file:
        progress = json.loads(file.metadata()["progress"])
        tensors = {k: file.get_tensor(k) for k in file.keys()}
    training.step, training.elapsed = progress["step"], progress["elapsed"]
    device = next(training.module.parameters()).device
    training.module.load_state_dict({k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")})
    training.ema = {k.removeprefix("ema/"): v.to(device) for k, v in tensors.items() if k.startswith("ema/")}
    for i, optimizer in enumerate(training.optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimizer/{i}/"):
                _, _, j, name = key.split("/")
                state.setdefault(int(j), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def steps_done(folder: Path, name: str) -> int:
    """Steps in a part's checkpoint; 0 where there is none."""
    checkpoint = folder / f"{name}.safetensors"
    if not checkpoint.exists():
        return 0
    with safe_open(checkpoint, framework="pt") as file:
        return json.loads(file.metadata()["progress"])["step"]
