"""A folder of videos in, VBench's scores out: checked, scored by VBench's own Python, and put together."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from tapvideo.checks import ConfigError
from tapvideo.console import Console
from tapvideo.sample import RunFailed
from tapvideo.vbench import weights
from tapvideo.vbench.clips import Clip, Facts, check_pairs, read_baseline, read_clips, read_facts, with_digests
from tapvideo.vbench.config import VBenchConfig
from tapvideo.vbench.dimensions import DIMENSIONS
from tapvideo.vbench.environment import Described, Located, check_weights, describe, locate
from tapvideo.vbench.gather import gather
from tapvideo.vbench.jobs import Job, run_job
from tapvideo.vbench.page import write_page
from tapvideo.vbench.results import Results, problems, render, results_folder, save
from tapvideo.vbench.store import Scored, ScoreStore
from tapvideo.vbench.suite import Suite, choose, read_suite


@dataclass(frozen=True, slots=True)
class Plan:
    """A stage that can run: its folders, prompts and environment have been looked at."""

    config: VBenchConfig
    videos: list[Clip]
    baseline: list[Clip] | None
    suite: Suite
    located: Located
    described: Described | None
    """None where nothing is scored."""
    cache_dir: Path
    store: ScoreStore

    @property
    def job(self) -> str:
        """Name of this process's files: of the same videos and the same shard."""
        return f"{self._digest([])}-{self.config.shard}of{self.config.shards}"

    @property
    def decoding_job(self) -> str:
        """The same, of these dimensions: tasks of an array, a dimension each, must not write to one file."""
        return f"{self._digest(self.suite.dimensions)}-{self.config.shard}of{self.config.shards}"

    def _digest(self, more: list[str]) -> str:
        places = [str(clip.path.absolute()) for clip in [*self.videos, *(self.baseline or [])]]
        return hashlib.sha256("\n".join([*places, *more]).encode()).hexdigest()[:12]


def weights_text(config: VBenchConfig) -> tuple[str, bool]:
    """What `weights=list`, `check` or `script` prints, and whether everything is there."""
    cache_dir, dimensions = _cache_dir(config), config.dimensions or list(DIMENSIONS)
    found = weights.look_up(cache_dir, dimensions, digests=config.weights == "check")
    complete = not any(one.problem for one in found)
    if config.weights == "script":
        return weights.fetch_script(cache_dir, dimensions), True
    return weights.render(found), complete or config.weights == "list"


def prepare(config: VBenchConfig) -> Plan:
    """Check everything that can be checked before a video is read; writes nothing.

    Raises:
        ConfigError: if a folder, a prompt, the environment or the weights do not allow these dimensions.
    """
    videos = read_clips(config.videos)
    baseline = read_baseline(config.videos, config.baseline) if config.baseline else None
    if baseline is not None:
        check_pairs(videos, baseline)
    located = locate(config.python)
    suite = choose(config.protocol, config.dimensions, read_suite(located.suite), videos)
    cache_dir = _cache_dir(config)
    described = None
    if not config.collect:
        check_weights(cache_dir, suite.dimensions)
        described = describe(config.python, cache_dir, suite.dimensions)
        if config.device.startswith("cuda") and described.cuda is None:
            raise ConfigError(f"device={config.device!r}: torch of {located.python} sees no GPU; allowed: auto, cpu")
    store = ScoreStore(Path(config.output_dir).expanduser() / "vbench-scores")
    return Plan(config, videos, baseline, suite, located, described, cache_dir, store)


def run_vbench(config: VBenchConfig, *, command: str = "") -> Results | None:
    """Score what has no score yet, and write results.json, results.csv and report.html.

    Returns:
        The results; None for a shard, which leaves scores alone.

    Raises:
        ConfigError: if `prepare` refuses, or two clips that are to be compared differ in size or length.
        RunFailed: if VBench fails as a whole, in any dimension; the others are scored.
    """
    console, plan = Console(verbose=config.verbose), prepare(config)
    plan = with_hashes(plan)
    failures = [] if config.collect else score(plan, console)
    if failures:
        raise RunFailed("; ".join(failures))
    if config.shards > 1:
        return None
    results = gather(plan.config, plan.suite, plan.located, plan.described, plan.videos, plan.baseline, plan.store)
    results.command = command
    folder = results_folder("vbench", config.output_dir, config.videos, config.baseline)
    save(folder, results)
    if config.report:
        write_page(folder / "report.html", results)
    console.say("\n".join([render(results), *problems(results), str(folder)]))
    return results


def with_hashes(plan: Plan) -> Plan:
    """The plan, with the SHA-256 of every video."""
    baseline = None if plan.baseline is None else with_digests(plan.baseline)
    return replace(plan, videos=with_digests(plan.videos), baseline=baseline)


def score(plan: Plan, console: Console) -> list[str]:
    """Score this shard's videos, one dimension after the other; returns why dimensions failed as a whole."""
    config = plan.config
    own = [*plan.videos, *(plan.baseline or [])][config.shard :: config.shards]
    whole = _whole(plan, own, console)
    failures = []
    for dimension in plan.suite.dimensions:
        known = plan.store.scores(plan.located.version, dimension)
        asked = {(clip.sha256, clip.prompt): clip for clip in plan.suite.of(dimension, whole)}
        todo = [clip for key, clip in asked.items() if not _is_scored(known.get(key))]
        console.say(f"{dimension}: {len(asked)} videos, {len(todo)} to score")
        if todo:
            job = Job(
                python=plan.located.python,
                version=plan.located.version,
                cache_dir=plan.cache_dir,
                dimension=dimension,
                device=_device(plan),
                batch=config.batch,
                out=plan.store.file(dimension, plan.job),
                items=[(clip, plan.suite.hints(dimension, clip)) for clip in todo],
            )
            try:
                run_job(job, console)
            except RunFailed as error:
                failures.append(str(error))
    return failures


def _whole(plan: Plan, clips: list[Clip], console: Console) -> list[Clip]:
    """The videos that decode from beginning to end; what is found is noted for good."""
    known: dict[str, Facts] = plan.store.facts()
    unknown = list({clip.sha256: clip for clip in clips if clip.sha256 not in known}.values())
    if unknown:
        console.say(f"decoding {len(unknown)} videos once, to see that they are whole")
        found = [(clip, read_facts(clip)) for clip in unknown]
        plan.store.add_facts(plan.decoding_job, found)
        known |= {clip.sha256: facts for clip, facts in found}
    return [clip for clip in clips if known[clip.sha256].error is None]


def _is_scored(found: Scored | None) -> bool:
    return found is not None and found.error is None


def _device(plan: Plan) -> str:
    if plan.config.device != "auto":
        return plan.config.device
    return "cuda" if plan.described and plan.described.cuda else "cpu"


def _cache_dir(config: VBenchConfig) -> Path:
    return Path(config.cache_dir).expanduser() if config.cache_dir else weights.default_cache_dir()
