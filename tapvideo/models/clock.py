"""Which run a transformer call belongs to, for all transformers and branches of one pipeline."""

from collections.abc import Callable
from dataclasses import dataclass, field

from tapvideo.trace import Trace


@dataclass(slots=True)
class RunClock:
    """Tells runs apart, so that whatever ended the last one, the next begins with no anchor and no record of it."""

    num_steps_hint: Callable[[], int | None]
    """Number of steps where the `cache_context` does not tell it."""
    rises_hint: Callable[[], bool] = lambda: False
    """Whether timesteps go up in the course of a run, as Mochi's do."""
    traces: list[Trace] = field(default_factory=list[Trace])
    run: int = 0
    _num_steps: int | None = None
    _step: int = -1
    _callers: set[tuple[int, str]] = field(default_factory=set[tuple[int, str]])
    """Who has called at this step: transformer and branch."""
    _timestep: float = float("inf")
    _release: Callable[[], None] | None = None
    """Of the transformer at work."""

    def told(self, caller: tuple[int, str], step: int, num_steps: int) -> int:
        """The run of a call whose step is told: a new one where steps go back, repeat, or are of another number."""
        repeats = step == self._step and caller in self._callers
        if step < self._step or repeats or num_steps != self._num_steps:
            self._begin(num_steps)
        if step != self._step:
            self._callers.clear()
        self._step = step
        self._callers.add(caller)
        return self.run

    def counted(self, caller: tuple[int, str], timestep: float | None, num_steps: int) -> tuple[int, int]:
        """The run and the step of a call whose step is not told; of a timestep as `descending` gives it.

        A new run begins where timesteps go up or the number of steps changes, a new step where they go down or a caller
        comes back: so an expert that takes over in mid-run knows where it is.
        """
        now = self._timestep if timestep is None else timestep
        if num_steps != self._num_steps or now > self._timestep:
            self._begin(num_steps)
            self._step = 0
        elif now < self._timestep or caller in self._callers:
            self._step += 1
            self._callers.clear()
        self._timestep = now
        self._callers.add(caller)
        return self.run, self._step

    def descending(self, timestep: float) -> float:
        """A timestep, or its negative where timesteps go up: what this returns goes down in the course of a run."""
        return -timestep if self.rises_hint() else timestep

    def take_over(self, release: Callable[[], None]) -> None:
        """The transformer that `release` belongs to is at work; whichever was before it lets go of its anchors."""
        if self._release is not None and self._release != release:
            self._release()
        self._release = release

    def _begin(self, num_steps: int) -> None:
        self.run += 1
        self._num_steps, self._step, self._timestep = num_steps, -1, float("inf")
        self._callers.clear()
        for trace in self.traces:
            trace.clear()
