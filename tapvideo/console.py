"""What a run says while it runs: on rank 0, and only where it is asked to."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from tapvideo.schedule import Plan, StepKind

_REDRAW = 0.3
"""Seconds; to draw a bar takes a tenth of a small model's forecast step."""


def rank() -> int:
    """This process's rank, as torchrun gives it; 0 without."""
    return int(os.environ.get("RANK", "0"))


class Console:
    """Lines and progress bars, or silence."""

    def __init__(self, *, verbose: bool) -> None:
        self.loud = verbose and rank() == 0
        if rank():
            logging.getLogger("tapvideo").setLevel(logging.ERROR)  # one rank warns for all

    def say(self, text: str) -> None:
        """Print a line."""
        if self.loud:
            print(text, flush=True)

    @contextmanager
    def step_bar(self, label: str, plan: Plan) -> Iterator[Callable[[int], None]]:
        """A bar over denoising steps; the block calls what it is given with the index of each step that is done."""
        counts = dict.fromkeys(StepKind, 0)
        look = {"disable": not self.loud, "dynamic_ncols": True, "mininterval": _REDRAW}
        with tqdm(total=len(plan), desc=f"{label:>8}", unit="step", **look) as bar:

            def done(step: int) -> None:
                counts[plan[step]] += 1
                kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items())
                bar.set_postfix_str(kinds, refresh=False)
                bar.update()
                if step == len(plan) - 1:
                    bar.close()  # the rate it ends on is the loop's, without the VAE

            yield done
