"""The two guidance branches of a step on two halves of a group, which exchange nothing but predictions."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tapvideo.parallel.comm import Comm

BRANCHES = ("cond", "uncond")
"""Names of the branches in diffusers' `cache_context`, by the rank on the cfg axis that runs them."""


class GuidanceExchange:
    """Runs this rank's branch; the other's prediction is filled in before the pipeline combines the two.

    A pipeline calls the transformer once a branch. A call whose branch another rank runs gives out a tensor of NaN,
    which gets its values when the step's last branch is called: the pipeline combines predictions only then. Were it to
    look earlier, it would see NaN and not a wrong video.
    """

    def __init__(self, comm: Comm) -> None:
        self.comm = comm
        self._run = self._step = -1
        self._predictions: dict[str, Tensor] = {}

    @property
    def is_alone(self) -> bool:
        """Whether this rank runs both branches."""
        return self.comm.size == 1

    def __call__(self, branch: str | None, run: int, step: int, like: Tensor, compute: Callable[[], Any]) -> Any:
        """The transformer's output for a branch, run here or elsewhere.

        Args:
            branch: of `BRANCHES`.
            run: number of the denoising loop.
            step: in the loop; with `run` it tells the calls of one step from those of the next.
            like: of the shape and dtype of a prediction.
            compute: runs the transformer, with a tuple or a diffusers output as result.

        Raises:
            ValueError: if the pipeline does not name its branches so, or ran one of them only.
            PeerLost: if the other half does not answer.
        """
        if branch not in BRANCHES:
            names = " and ".join(repr(name) for name in BRANCHES)
            raise ValueError(
                f"parallel.cfg={self.comm.size} needs a pipeline that names its guidance branches {names}; this call "
                f"is {branch!r}; allowed here: parallel.cfg=1"
            )
        if (run, step) != (self._run, self._step):
            self._begin(run, step)
        if branch == BRANCHES[self.comm.rank]:
            result = compute()
            prediction = result[0]
        else:
            prediction = like.fill_(torch.nan)
            result = (prediction,)
        self._predictions[branch] = prediction
        if len(self._predictions) == len(BRANCHES):
            self._exchange()
        return result

    def _begin(self, run: int, step: int) -> None:
        seen, self._predictions = tuple(self._predictions), {}
        is_same_run, self._run, self._step = run == self._run, run, step
        if is_same_run and len(seen) == 1:
            raise ValueError(
                f"parallel.cfg={self.comm.size} but the pipeline ran the branch {seen[0]!r} alone, without guidance; "
                "allowed: guidance above 1, or parallel.cfg=1"
            )

    def _exchange(self) -> None:
        own = self._predictions[BRANCHES[self.comm.rank]]
        everyone = self.comm.all_gather(own[None], [1] * self.comm.size, what="guidance")
        for name, prediction in zip(BRANCHES, everyone, strict=True):
            if name != BRANCHES[self.comm.rank]:
                self._predictions[name].copy_(prediction)
        self._predictions = {}
