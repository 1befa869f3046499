"""Diagnostics of a comparison: un-accelerated runs of its clips, watched for what TAP would have forecast."""

from pathlib import Path
from typing import Any

from tapvideo.calibration import load_calibration
from tapvideo.calibration.find import find_calibration
from tapvideo.compare.clips import PLAIN, Studio
from tapvideo.compare.diagnostics import Shadow, diagnose
from tapvideo.compare.methods import Settings, Tuned
from tapvideo.compare.own import configured, preset
from tapvideo.compare.store import file_sha256
from tapvideo.compare.tuning import land
from tapvideo.console import Console
from tapvideo.models.watch import StackCall, watched
from tapvideo.planning import make_plan
from tapvideo.resolve import run_kind
from tapvideo.sample import sample


def diagnostics(
    studio: Studio, console: Console, tuned: dict[tuple[str, float], Tuned], prompts: list[str]
) -> dict[str, Any]:
    """Of TAP as it was tuned, at every budget; the same un-accelerated runs show all of them."""
    budgets, seeds = studio.config.budgets, studio.config.seeds
    path = find_calibration(run_kind(studio.bench.config))
    settings = {budget: _tap_settings(studio, tuned, budget) for budget in budgets}
    shown = [prompts, seeds, path and file_sha256(path)]
    keys = {
        budget: studio.tuning_key(PLAIN, ["diagnostics", settings[budget], *shown], budget, 0.0) for budget in budgets
    }
    found = {budget: studio.store.read(keys[budget]) for budget in budgets}
    shadows = {budget: _shadow(studio, settings[budget], path) for budget, kept in found.items() if kept is None}
    if shadows:
        _show(studio, console, list(shadows.values()), prompts)
    for budget, shadow in shadows.items():
        found[budget] = figures = diagnose(shadow, len(prompts) * len(seeds))
        studio.store.write(keys[budget], figures)
    return {f"{budget:g}x": kept for budget, kept in found.items()}


def _tap_settings(studio: Studio, tuned: dict[tuple[str, float], Tuned], budget: float) -> Settings:
    known = tuned.get(("tap-paper", budget))
    if known is None:
        method, target = preset(studio.config.presets["paper"]), studio.config.target(budget)
        variants = method.variants(studio.bench, target)
        return land(variants[0], target, studio.config.tolerance, lambda settings: target).settings
    return known.settings


def _shadow(studio: Studio, settings: Settings, calibration: Path | None) -> Shadow:
    bench, paper = studio.bench, studio.config.presets["paper"]
    tap_config = configured(bench, paper, settings).tap_config
    known = load_calibration(calibration) if calibration else None
    return Shadow(tap_config, make_plan(tap_config, bench.config.steps), known)


def _show(studio: Studio, console: Console, shadows: list[Shadow], prompts: list[str]) -> None:
    """Un-accelerated runs of all clips."""
    bench, seeds = studio.bench, studio.config.seeds

    def see(call: StackCall) -> None:
        for shadow in shadows:
            shadow.see(call)

    with watched(bench.pipe.transformer, see):
        for number, prompt in enumerate(prompts, start=1):
            console.say(f"diagnostics [{number}/{len(prompts)}] {prompt}")
            for seed in seeds:
                for shadow in shadows:
                    shadow.begin()
                sample(bench.pipe, bench.config, prompt, seed, lambda step: None)
