"""The comparison: references, tuning, every method at every budget, diagnostics, results."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tapvideo.compare.cache_dit_peers import cache_dit_methods
from tapvideo.compare.clips import PLAIN, Studio, versions
from tapvideo.compare.config import CompareConfig, compare_folder, read_sets
from tapvideo.compare.diffusers_peers import diffusers_methods
from tapvideo.compare.flops import count_flops, first_call
from tapvideo.compare.methods import Bench, Method, Tuned
from tapvideo.compare.oracle import oracle_methods
from tapvideo.compare.own import fewer_steps, on_nodes, preset
from tapvideo.compare.results import ClipResult, Comparison, is_bound
from tapvideo.compare.robust import with_robustness
from tapvideo.compare.rules import rule_methods
from tapvideo.compare.shadows import diagnostics
from tapvideo.compare.shot import Shot
from tapvideo.compare.store import Reference, Store
from tapvideo.compare.tables import at_equal_compute, differences, render, save, summarise
from tapvideo.compare.tuning import Tuner
from tapvideo.config import ConfigError, as_dict
from tapvideo.console import Console
from tapvideo.pipeline import hide_loading_bars, load_pipeline, resolve_device
from tapvideo.pipeline_kinds import SCHEDULERS
from tapvideo.record import device_name
from tapvideo.report.compare import write_comparison_report
from tapvideo.run_folder import slug
from tapvideo.sample import sample
from tapvideo.weights import find_weights, fingerprint_weights


def all_methods(config: CompareConfig) -> dict[str, Method]:
    """Every method, by key, in the table's order."""
    asked = [name for name in SCHEDULERS if f"steps-{name}" in config.methods]  # some of which may not be possible
    schedulers = dict.fromkeys([*reference_schedulers(config), *asked])
    methods = [
        *(fewer_steps(name, f"fewer {SCHEDULERS[name]} steps") for name in schedulers),
        on_nodes(),
        *(preset(forecast, config.schedules.get(name, "interval")) for name, forecast in config.presets.items()),
        *(oracle_methods(config.presets["paper"]) if "paper" in config.presets else []),
        *diffusers_methods(),
        *cache_dit_methods(),
        *rule_methods(),
    ]
    return {method.key: method for method in methods}


def choose_methods(config: CompareConfig) -> list[Method]:
    """The methods that a config asks for.

    Where fewer steps of a scheduler are asked for that the model does not take, those of its own are made too.

    Raises:
        ConfigError: if one is not known.
    """
    known = all_methods(config)
    unknown = [key for key in config.methods if key not in known]
    if unknown:
        raise ConfigError(f"methods={config.methods!r} names {unknown[0]!r}; allowed: {', '.join(known)}")
    own, possible = f"steps-{config.scheduler}", {f"steps-{name}" for name in config.base().kind.schedulers}
    asked = {key for key in config.methods if key.startswith("steps-")}
    needs_own = bool(asked - possible) and own not in asked
    all_of_them = [key for key in known if not is_bound(key)]
    return [known[key] for key in [*([own] if needs_own else []), *config.methods] or all_of_them]


def reference_schedulers(config: CompareConfig) -> list[str]:
    """The run's own scheduler, and another one that it is compared with, where one goes with the model."""
    others = [name for name in config.base().kind.schedulers if name != config.scheduler]
    return [config.scheduler, *others[:1]]


@dataclass(slots=True)
class _Run:
    """What one comparison has and makes."""

    config: CompareConfig
    folder: Path
    console: Console
    studio: Studio
    comparison: Comparison


def run(config: CompareConfig, *, command: str = "") -> Path:
    """Compare methods; what an earlier run finished is not made again.

    Args:
        config: what to compare.
        command: the command line, for the results.

    Returns:
        The folder with results.json, results.csv, report.html and frontier.png.

    Raises:
        ConfigError: if the config asks for what is not possible here.
    """
    methods = choose_methods(config)
    tuning, reporting = read_sets(config)
    folder, console = compare_folder(config, [*tuning, "", *reporting]), Console(verbose=config.verbose)
    hide_loading_bars(downloads=not console.loud)
    console.say(
        f"{len(methods)} methods at {config.budgets} x on {len(reporting)} x {len(config.seeds)} clips\n{folder}"
    )
    work = _Run(config, folder, console, open_studio(config), _empty(config, command))
    tuned = tune_all(work, methods, tuning)
    for index, prompt in enumerate(reporting):
        for seed in config.seeds:
            console.say(f"[{index + 1}/{len(reporting)}] {prompt}, seed {seed}")
            work.comparison.clips += make_job(work, methods, tuned, Shot(prompt, seed))
            write(work, methods)  # after every job: an interrupted comparison keeps what it has
    if config.diagnostics and "paper" in config.presets:
        work.comparison.diagnostics = diagnostics(work.studio, console, tuned, reporting)
    write(work, methods)
    targets = {budget: config.target(budget) for budget in config.budgets}
    console.say(render(work.comparison, targets, config.tolerance))
    for verdict in verdicts(work.comparison):
        console.say(f"\n{verdict}")
    write_comparison_report(folder, work.comparison)
    console.say(str(folder / "report.html"))
    return folder


def open_studio(config: CompareConfig) -> Studio:
    """The pipeline, warm, with the cost of each of its parts."""
    base = config.base()
    if base.model.boundary is not None:
        raise ConfigError(
            f"model={base.model.name}: two experts cannot be compared; allowed: models with one transformer"
        )
    pipe = load_pipeline(base)
    short = replace(base, steps=3)
    with first_call(pipe.transformer) as captured:
        sample(pipe, short, prompt="", seed=0, on_step=lambda step: None)
    ledger = count_flops(pipe.transformer, captured.args, captured.kwargs)
    bench = Bench(pipe, base, ledger, branches=captured.calls // short.steps)
    store = Store(Path(config.output_dir).expanduser() / "compare-clips")
    return Studio(bench, store, config, fingerprint_weights(find_weights(config.model)))


def tune_all(work: _Run, methods: list[Method], prompts: list[str]) -> dict[tuple[str, float], Tuned]:
    """Settings of every method at every budget."""
    tuner = Tuner(work.studio, prompts, work.config.tuning_seeds, work.config.tolerance)
    tuned = {}
    for method in methods:
        for budget in work.config.budgets:
            found = tuner.tune(method, work.config.target(budget))
            tuned[method.key, budget] = found
            passes = "" if found.full_passes is None else f"{found.full_passes:.2f} full passes"
            said = ", ".join(part for part in (passes, found.note) if part)
            work.console.say(f"tuned {method.label} at {budget:g} x: {said}")
    return tuned


def make_job(
    work: _Run, methods: list[Method], tuned: dict[tuple[str, float], Tuned], shot: Shot
) -> Iterator[ClipResult]:
    """Every clip of one prompt and seed; the un-accelerated one again at the end, to show what methods left behind."""
    config, studio = work.config, work.studio
    _, *others = reference_schedulers(config)
    references = {"": studio.reference({}, shot)}
    for name in others:
        references[f"{name}{config.steps}"] = studio.reference({"scheduler": name}, shot)
    references["ode"] = studio.reference({"steps": config.ode_steps}, shot)
    for name, reference in references.items():
        yield _shown(work, *studio.reference_clip(name, shot, reference, references), None, "")
    yield from _methods_clips(work, methods, tuned, shot, references)
    for draw in range(1, config.draws):
        yield from _make_draw(work, methods, tuned, replace(shot, draw=draw), references[""])
    for name, noise_seed in (("plain-rerun", None), ("other-seed", shot.seed + config.other_seed)):
        method = replace(PLAIN, key=name)
        yield _shown(work, *studio.clip(method, {}, shot, references, noise_seed=noise_seed), None, "")


def _make_draw(
    work: _Run, methods: list[Method], tuned: dict[tuple[str, float], Tuned], shot: Shot, first: Reference
) -> Iterator[ClipResult]:
    """The clips of one more draw, against its own un-accelerated clip, and that against the `first`."""
    reference = work.studio.reference({}, shot)
    yield _shown(work, *work.studio.reference_clip("nudged", shot, reference, {"": first}), None, "")
    yield from _methods_clips(work, methods, tuned, shot, {"": reference})


def _methods_clips(
    work: _Run,
    methods: list[Method],
    tuned: dict[tuple[str, float], Tuned],
    shot: Shot,
    references: dict[str, Reference],
) -> Iterator[ClipResult]:
    for method in methods:
        for budget in work.config.budgets:
            yield make_clip(work, method, tuned[method.key, budget], budget, shot, references)


def make_clip(
    work: _Run, method: Method, tuned: Tuned, budget: float | None, shot: Shot, references: dict[str, Reference]
) -> ClipResult:
    """One clip, or the row that says why there is none."""
    status, note = "not_run", tuned.note
    if not tuned.failed:
        try:
            result, key = work.studio.clip(method, tuned.settings, shot, references)
            return _shown(work, result, key, budget, tuned.note)
        except Exception as error:  # whatever a peer raises, the others go on
            status, note = "failed", f"{type(error).__name__}: {error}"
    return ClipResult(method=method.key, budget=budget, **asdict(shot), status=status, note=note)


def _shown(work: _Run, result: ClipResult, key: str, budget: float | None, note: str) -> ClipResult:
    """A stored clip as the results show it, its video beside them; figures are all that is shown of further draws."""
    if result.draw:
        return replace(result, budget=budget, note=note)
    video = f"videos/{slug(result.method)}-{key[:12]}.mp4"
    work.studio.store.copy(key, "video.mp4", work.folder / video)
    return replace(result, budget=budget, note=note, video=video)


def verdicts(comparison: Comparison) -> list[str]:
    """What the diagnostics come to, a sentence a budget."""
    return [f"{budget}: {found['verdict']}" for budget, found in comparison.diagnostics.items()]


def write(work: _Run, methods: list[Method]) -> None:
    """The results so far."""
    comparison, config = work.comparison, work.config
    labels = _reference_labels(config)
    by_row: dict[tuple[str, float | None], list[ClipResult]] = {}
    for clip in comparison.clips:
        by_row.setdefault((clip.method, clip.budget), []).append(clip)
    labels |= {method.key: method.label for method in methods}
    notes = {method.key: method.remark(work.studio.bench.branches) for method in methods}
    rows = (
        summarise(key, labels.get(key, key), budget, clips, notes.get(key, "") if clips[0].status == "ok" else "")
        for (key, budget), clips in by_row.items()
    )
    comparison.table = with_robustness(rows, comparison.clips)
    comparison.differences = []
    for budget in config.budgets:
        rows = [row for row in comparison.table if row.budget == budget]
        fair = [row.method for row in rows if at_equal_compute(row, config.target(budget), config.tolerance)]
        fair += [row.method for row in rows if is_bound(row.method)]
        comparison.differences += differences(comparison.clips, fair, budget)
    save(work.folder, comparison)


def _reference_labels(config: CompareConfig) -> dict[str, str]:
    own, steps = SCHEDULERS[config.scheduler], config.steps
    others = {f"{name}{steps}": f"{label}, {steps} steps" for name, label in SCHEDULERS.items()}
    return {
        "plain": f"un-accelerated ({own}, {steps} steps)",
        **others,
        "ode": f"the ODE's solution ({own}, {config.ode_steps} steps)",
        "plain-rerun": "un-accelerated, once more at the end",
        "other-seed": "un-accelerated, another seed",
        "nudged": f"un-accelerated, noise nudged by {config.nudge:g}",
    }


def _empty(config: CompareConfig, command: str) -> Comparison:
    return Comparison(
        title=f"{config.model.name}: {config.name} comparison",
        command=command,
        versions=versions(),
        device=device_name(resolve_device(config.base())),
        settings=as_dict(config),
    )
