"""A calibration and its file: one small Gram matrix, in safetensors."""

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from tapvideo.calibration.nodes import run_plans
from tapvideo.calibration.weights import fit
from tapvideo.checks import ConfigError
from tapvideo.video_io import atomic_path

FORMAT = "tapvideo-calibration-1"
GUIDED = frozenset({"cond", "uncond"})
"""Branches of which it is known how guidance mixes them."""

_TENSORS = ("gram", "mix", "sensitivity", "plans")


@dataclass(frozen=True, slots=True)
class Calibration:
    """Inner products of the stack's residuals of all branches and steps, averaged over calibration clips."""

    branches: tuple[str, ...]
    """As `cache_context` names them."""
    gram: Float64[Tensor, "m m"]
    """Branch by branch, step by step; per token."""
    mix: Float64[Tensor, "e b"]
    """What each branch counts in the guided sum, by transformer: two experts may have a guidance each."""
    sensitivity: Float64[Tensor, " s"]
    """How far an error of the guided residual at a step moves the final latents; positive, of any unit."""
    plans: Bool[Tensor, "s1 s"]
    """Row M: the best M full steps; empty where there are none."""
    about: dict[str, Any]
    """Model, scheduler, steps and guidance that it holds for, and what it was made from."""
    starts: tuple[int, ...] = (0,)
    """The first step of every transformer: of one, or of two experts."""

    @property
    def num_steps(self) -> int:
        """Of the runs it is for."""
        return len(self.sensitivity)

    @property
    def full_steps(self) -> list[int]:
        """Numbers of full steps for which there is a plan."""
        return [count for count, plan in enumerate(self.plans) if plan.any()]

    @property
    def knows_mix(self) -> bool:
        """Whether `mix` is that of a guided sum, and not 1 each for want of knowledge."""
        return set(self.branches) == GUIDED

    def share(self, branch: str, step: int) -> float:
        """What a branch counts in the guided sum of a step.

        Raises:
            ConfigError: if the branch is none of the calibration's.
        """
        return self.mix[self.expert(step), self._row(branch)].item()

    def _row(self, branch: str) -> int:
        if branch not in self.branches:
            raise ConfigError(f"tap.calibration has no branch {branch!r}; allowed: runs of {', '.join(self.branches)}")
        return self.branches.index(branch)

    def expert(self, step: int) -> int:
        """The number of the transformer that makes a step."""
        return bisect_right(self.starts, step) - 1

    def weights(self, branch: str, anchors: Sequence[int], step: int) -> list[float]:
        """Weights over a branch's anchors (steps, newest first) that err least at `step`.

        Raises:
            ConfigError: if the branch is none of the calibration's, as where the guidance is another's, or if the
                anchors are of another transformer than the step.
        """
        row, number = self._row(branch), self.expert(step)
        if any(self.expert(anchor) != number for anchor in anchors):
            raise ConfigError(
                f"tap.calibration is of transformers that begin at steps {list(self.starts)}, and step {step} is "
                f"forecast from steps {list(anchors)}; allowed: a calibration of such runs"
            )
        found = fit(self.gram, self.mix[number], torch.tensor([list(anchors)]), torch.tensor([step]))
        return found[0, row].tolist()

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
        about = json.dumps({"branches": self.branches, "starts": self.starts, **self.about}, sort_keys=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temp:
            temp.write_bytes(to_bytes(tensors, metadata={"format": FORMAT, "about": about}))


def calibrate(
    branches: Sequence[str],
    gram: Float64[Tensor, "m m"],
    mix: Float64[Tensor, "e b"],
    sensitivity: Float64[Tensor, " s"],
    about: dict[str, Any],
    starts: Sequence[int] = (0,),
) -> Calibration:
    """A calibration with its plans."""
    plans = run_plans(gram, mix, sensitivity, starts)
    return Calibration(tuple(branches), gram, mix, sensitivity, plans, about, tuple(starts))


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
        branches, starts = tuple(about.pop("branches")), tuple(about.pop("starts", (0,)))
        if tensors["mix"].ndim == 1:  # as files of one transformer had it, before there were files of two
            tensors["mix"] = tensors["mix"][None]
        _check(len(branches), starts, tensors)
        found = Calibration(branches, **tensors, about=about, starts=starts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ConfigError(
            f"tap.calibration={str(path)!r} cannot be read ({error}); allowed: a file that tapvideo-calibrate wrote"
        ) from error
    return found


def _check(branches: int, starts: tuple[int, ...], tensors: dict[str, Tensor]) -> None:
    steps = tensors["sensitivity"].numel()
    follow = all(type(a) is int and a < b for a, b in pairwise([*starts, steps]))
    if not starts or starts[0] != 0 or not follow:
        raise ValueError(f"its transformers cannot begin at steps {list(starts)} of {steps}")
    shapes = {"gram": (branches * steps,) * 2, "mix": (len(starts), branches), "sensitivity": (steps,)}
    shapes["plans"] = (steps + 1, steps)
    kinds = {name: torch.bool if name == "plans" else torch.float64 for name in shapes}
    odd = [name for name, t in tensors.items() if (tuple(t.shape), t.dtype) != (shapes[name], kinds[name])]
    if odd:
        found = {name: (str(tensors[name].dtype), tuple(tensors[name].shape)) for name in odd}
        raise ValueError(f"tensors {found} do not belong together with {branches} branches of {steps} steps")
    numbers = [t for t in tensors.values() if t.is_floating_point()]
    if not all(bool(torch.isfinite(t).all()) for t in numbers) or not bool((tensors["sensitivity"] > 0).all()):
        raise ValueError("it has values that are not finite, or a sensitivity that is not positive")
    counts = tensors["plans"].sum(1)
    known = counts > 0
    if (
        not known.any()
        or not torch.equal(counts[known], known.nonzero()[:, 0])
        or not tensors["plans"][known][:, list(starts)].all()
    ):
        raise ValueError("its plans are none, or not of the numbers of full steps that they stand for")
