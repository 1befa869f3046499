"""Which guidance branch a call is of, where the pipeline does not say."""

from weakref import ref

from torch import Tensor

from tapvideo.parallel.guidance import BRANCHES

GUIDER_NAMES = dict(zip(("pred_cond", "pred_uncond"), BRANCHES, strict=True))
"""What pipelines with a guider call the branches."""


class TextBranches:
    """Tells branches apart by their prompts: a pipeline makes one tensor of each, and passes it at every step.

    Which of the two is called which does not matter, as long as it is called so all through the run.
    """

    def __init__(self) -> None:
        self._texts: list[ref[Tensor]] = []
        self._called: set[int] = set()
        """Whose turn it was at this timestep, as places in the list."""
        self._timestep = float("inf")
        self._is_clear = True

    def name(self, text: Tensor, timestep: float) -> str | None:
        """Of `BRANCHES`; None for the rest of a run in which prompts do not tell branches apart.

        They do not where there are more of them than branches, as if they are made anew at every step, or where two
        calls of a step have the same.
        """
        if timestep > self._timestep:  # a new run, perhaps of other prompts
            self._texts.clear()
            self._is_clear = True
        if timestep != self._timestep:
            self._called.clear()
        self._timestep = timestep
        place = next((i for i, seen in enumerate(self._texts) if seen() is text), len(self._texts))
        if place == len(self._texts):
            self._texts.append(ref(text))
        self._is_clear &= place < len(BRANCHES) and place not in self._called
        self._called.add(place)
        return BRANCHES[place] if self._is_clear else None
