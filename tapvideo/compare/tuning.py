"""Every method is set so that it takes a budget's full passes, on the tuning prompts and never on those reported.

A method may have several variants, each with one free knob. The knob is searched until the method lands on the budget;
of the variants that land, the one of the best PSNR on the tuning prompts speaks for the method.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

from tapvideo.compare.clips import Studio
from tapvideo.compare.methods import Knob, Method, NotPossible, Settings, Tuned, Variant
from tapvideo.compare.shot import Shot
from tapvideo.sample import sample

_MOST_TRIES = 9


@dataclass(frozen=True, slots=True)
class _Trial:
    settings: Settings
    full_passes: float


@dataclass(slots=True)
class Tuner:
    """Finds settings, and remembers them in the store."""

    studio: Studio
    prompts: list[str]
    seeds: list[int]
    tolerance: float
    _calibrated: dict[str, Settings] = field(default_factory=dict[str, Settings])

    def tune(self, method: Method, target: float) -> Tuned:
        """Settings of a method for a number of full passes; a method that cannot run says so in its note."""
        try:
            variants = method.variants(self.studio.bench, target)
            asked = [variant.settings for variant in variants]
            key = self.studio.tuning_key(method, [self.prompts, self.seeds], target, self.tolerance, asked)
            kept = self.studio.store.read(key)
            if kept is not None:
                return Tuned(**kept)
            tuned = self._search(method, variants, target)
        except NotPossible as error:
            return Tuned(failed=True, note=str(error))
        except Exception as error:  # whatever a peer raises, the others go on
            why = f"{type(error).__name__}: {error}"
            remark = method.remark(self.studio.bench.branches)
            return Tuned(failed=True, note=f"{remark} ({why})" if remark else why)
        self.studio.store.write(key, asdict(tuned))
        return tuned

    def _search(self, method: Method, variants: list[Variant], target: float) -> Tuned:
        fixed = self._calibration(method)
        trials: list[_Trial] = []
        for variant in variants:
            whole = replace(variant, settings={**variant.settings, **fixed})
            trials.append(land(whole, target, self.tolerance, lambda settings: self._passes(method, settings)))
        landed = [t for t in trials if self._off(t, target) <= self.tolerance]
        if not landed:
            nearest = min(trials, key=lambda t: self._off(t, target))
            note = f"does not land on {target:.1f} full passes: the nearest it comes is {nearest.full_passes:.1f}"
            return Tuned(nearest.settings, nearest.full_passes, note)
        best = max(landed, key=lambda t: self._psnr(method, t.settings)) if len(landed) > 1 else landed[0]
        return Tuned(best.settings, best.full_passes)

    def _off(self, trial: _Trial, target: float) -> float:
        return abs(trial.full_passes - target) / target

    def _calibration(self, method: Method) -> Settings:
        """What a method fits for itself, once for all budgets."""
        if method.calibrate is None:
            return {}
        if method.key not in self._calibrated:
            self._calibrated[method.key] = method.calibrate(self.studio.bench, self._run_plain)
        return self._calibrated[method.key]

    def _run_plain(self) -> None:
        bench = self.studio.bench
        for prompt in self.prompts:
            for seed in self.seeds:
                sample(bench.pipe, bench.config, prompt, seed, lambda step: None)

    def _clips(self, method: Method, settings: Settings) -> list[tuple[float, float]]:
        """Full passes and PSNR of every tuning clip."""
        shots = [Shot(prompt, seed) for prompt in self.prompts for seed in self.seeds]
        return [self.studio.trial(method, settings, shot) for shot in shots]

    def _passes(self, method: Method, settings: Settings) -> float:
        clips = self._clips(method, settings)
        return sum(passes for passes, _ in clips) / len(clips)

    def _psnr(self, method: Method, settings: Settings) -> float:
        clips = self._clips(method, settings)
        return sum(decibels for _, decibels in clips) / len(clips)


def land(variant: Variant, target: float, tolerance: float, passes: Callable[[Settings], float]) -> _Trial:
    """The knob's value that comes nearest to a number of full passes, by bisection.

    Args:
        variant: settings with a free knob.
        target: full passes to come near to.
        tolerance: a continuous knob is near enough within half of this share.
        passes: measures settings; called where the variant cannot predict.
    """
    known = variant.predict or passes
    trials: list[_Trial] = []

    def try_value(value: float) -> float:
        settings = {**variant.settings, variant.knob.name: value}
        trials.append(_Trial(settings, known(settings)))
        return trials[-1].full_passes

    if variant.knob.values:
        _bisect_values(variant.knob, target, try_value)
    else:
        _bisect_range(variant.knob, target, tolerance / 2, try_value)
    return min(trials, key=lambda t: abs(t.full_passes - target))


def _bisect_values(knob: Knob, target: float, try_value: Callable[[float], float]) -> None:
    values = knob.values if not knob.rising else knob.values[::-1]  # full passes fall along them
    low, high = 0, len(values) - 1
    while low <= high:
        middle = (low + high) // 2
        if try_value(values[middle]) > target:
            low = middle + 1
        else:
            high = middle - 1


def _bisect_range(knob: Knob, target: float, tolerance: float, try_value: Callable[[float], float]) -> None:
    low, high = math.log(knob.low), math.log(knob.high)
    for _ in range(_MOST_TRIES):
        middle = (low + high) / 2
        passes = try_value(float(f"{math.exp(middle):.4g}"))
        if abs(passes - target) <= tolerance * target:
            return
        if (passes > target) is not knob.rising:
            low = middle
        else:
            high = middle
