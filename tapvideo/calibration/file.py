"""A calibration and its file: one small Gram matrix, in safetensors."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tapvideo.calibration.nodes import best_plans, gap_costs
from tapvideo.calibration.weights import fit
from tapvideo.checks import ConfigError
from tapvideo.video_io import atomic_path

FORMAT = "tapvideo-calibration-1"
_TENSORS = ("gram", "mix", "sensitivity", "plans")


@dataclass(frozen=True, slots=True)
class Calibration:
    """Inner products of the stack's residuals of all branches and steps, averaged over calibration clips."""

    branches: tuple[str, ...]
    """As `cache_context` names them."""
    gram: Float64[Tensor, "m m"]
    """Branch by branch, step by step; per token."""
    mix: Float64[Tensor, " b"]
    """What each branch counts in the guided sum."""
    sensitivity: Float64[Tensor, " s"]
    """How far an error of the guided residual at a step moves the final latents; positive, of any unit."""
    plans: Bool[Tensor, "s1 s"]
    """Row M: the best M full steps; empty where there are none."""
    about: dict[str, Any]
    """Model, scheduler, steps and guidance that it holds for, and what it was made from."""

    @property
    def num_steps(self) -> int:
        """Of the runs it is for."""
        return len(self.sensitivity)

    @property
    def full_steps(self) -> list[int]:
        """Numbers of full steps for which there is a plan."""
        return [count for count, plan in enumerate(self.plans) if plan.any()]

    def weights(self, branch: str, anchors: Sequence[int], step: int) -> list[float]:
        """Weights over a branch's anchors (steps, newest first) that err least at `step`.

        Raises:
            ValueError: if the branch is none of the calibration's.
        """
        if branch not in self.branches:
            known = ", ".join(self.branches)
            raise ValueError(f"the calibration has no branch {branch!r}; it was made of {known}")
        found = fit(self.gram, self.mix, torch.tensor([list(anchors)]), torch.tensor([step]))
        return found[0, self.branches.index(branch)].tolist()

    def best_steps(self, count: int) -> list[int]:
        """The best `count` full steps.

        Raises:
            ValueError: if there is no plan with so many.
        """
        allowed = self.full_steps
        if count not in allowed:
            raise ValueError(f"no plan with {count} full steps; allowed: {allowed[0]} to {allowed[-1]}")
        return self.plans[count].nonzero()[:, 0].tolist()

    def save(self, path: Path) -> None:
        """Write the file; it is whole or not there."""
        tensors = {name: getattr(self, name).contiguous() for name in _TENSORS}
        about = json.dumps({"branches": self.branches, **self.about}, sort_keys=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temp:
            save_file(tensors, temp, metadata={"format": FORMAT, "about": about})


def calibrate(
    branches: Sequence[str],
    gram: Float64[Tensor, "m m"],
    mix: Float64[Tensor, " b"],
    sensitivity: Float64[Tensor, " s"],
    about: dict[str, Any],
) -> Calibration:
    """A calibration with its plans."""
    plans = best_plans(gap_costs(gram, mix, sensitivity))
    return Calibration(tuple(branches), gram, mix, sensitivity, plans, about)


def load_calibration(path: Path) -> Calibration:
    """Read a file that `tapvideo-calibrate` wrote.

    Raises:
        ConfigError: if it is not there, or is no calibration.
    """
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            if meta.get("format") != FORMAT:
                raise ValueError(f"its format is {meta.get('format')!r}, not {FORMAT!r}")
            tensors = {name: file.get_tensor(name) for name in _TENSORS}
        about = json.loads(meta["about"])
        found = Calibration(tuple(about.pop("branches")), **tensors, about=about)
        _check(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ConfigError(
            f"tap.calibration={str(path)!r} cannot be read ({error}); allowed: a file that tapvideo-calibrate wrote"
        ) from error
    return found


def _check(found: Calibration) -> None:
    size, steps = len(found.branches) * found.num_steps, found.num_steps
    shapes = [tuple(t.shape) for t in (found.gram, found.mix, found.plans)]
    if shapes != [(size, size), (len(found.branches),), (steps + 1, steps)]:
        raise ValueError(f"tensors of shapes {shapes} do not belong together")
    finite = all(bool(torch.isfinite(t).all()) for t in (found.gram, found.mix, found.sensitivity))
    if not finite or not bool((found.sensitivity > 0).all()):
        raise ValueError("it has values that are not finite, or a sensitivity that is not positive")
