"""A schedule made better by moving one full step at a time: what cannot be calculated is tried on clips."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

Steps = tuple[int, ...]

_NEAR = 0.7  # of the moves: a step or two; the others go anywhere
_FARTHEST_NEAR = 2
_PATIENCE = 0.46  # in logarithms, 4 dB: how far behind a schedule may fall, summed over clips, until it is dropped
_GAIN = 0.01  # in logarithms, a tenth of a dB: what a move must gain on the mean of all clips


@dataclass(frozen=True, slots=True)
class Tried:
    """A schedule, and the logarithm of its distance on every clip."""

    steps: Steps
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over clips."""
        return sum(self.scores) / len(self.scores)


def improve(
    score: Callable[[Steps, int], float],
    best: Tried,
    *,
    moves: int,
    num_steps: int,
    fixed: Sequence[int],
    known: Sequence[Steps] = (),
    on_gain: Callable[[int, Tried], None] = lambda count, found: None,
) -> Tried:
    """The best schedule of those tried, each of which is the best one so far with one full step moved.

    Most fall behind on the first few clips, and are dropped there.

    Args:
        score: logarithm of the distance of a schedule on a clip, which is asked for by its number.
        best: where to begin.
        moves: schedules to try.
        num_steps: of a run.
        fixed: full steps that stay where they are.
        known: schedules that need not be tried.
        on_gain: is told the number of schedules tried, and the new best one.
    """
    chance, seen = random.Random(0), {best.steps, *known}
    for count in range(1, moves + 1):
        steps = next((s for s in _proposals(best.steps, num_steps, fixed, chance) if s not in seen), None)
        if steps is None:
            break
        seen.add(steps)
        found = _against(score, best, steps)
        if found is not None and found.mean < best.mean - _GAIN:
            best = found
            on_gain(count, best)
    return best


def _proposals(steps: Steps, num_steps: int, fixed: Sequence[int], chance: random.Random) -> Iterator[Steps]:
    """Schedules with one full step moved, at random; few enough that all of them may have been tried."""
    movable = [step for step in steps if step not in fixed]
    free = [step for step in range(num_steps) if step not in steps]
    if not movable or not free:
        return
    for _ in range(100 * num_steps):
        step = chance.choice(movable)
        is_near = chance.random() < _NEAR
        places = [place for place in free if abs(place - step) <= _FARTHEST_NEAR] if is_near else free
        if places:
            yield tuple(sorted({*steps, chance.choice(places)} - {step}))


def _against(score: Callable[[Steps, int], float], best: Tried, steps: Steps) -> Tried | None:
    """A schedule on the clips of the best one; None where it fell behind."""
    scores: list[float] = []
    for clip in range(len(best.scores)):
        scores.append(score(steps, clip))
        if sum(scores) - sum(best.scores[: clip + 1]) > _PATIENCE:
            return None
    return Tried(steps, tuple(scores))
