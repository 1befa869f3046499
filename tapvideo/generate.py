"""The run itself: every prompt with every seed, accelerated, and without acceleration where the two are compared."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tapvideo.config import ConfigError, GenerateConfig, RecomputeConfig, ScheduleConfig
from tapvideo.console import Console, rank
from tapvideo.enable import TapSummary
from tapvideo.images import read_images
from tapvideo.memory import check_room, check_shards, kept_on_this_rank, num_tokens
from tapvideo.outputs import Made, describe, describe_mean, mean_comparison, report_clip, report_of, write_clip
from tapvideo.parallel.decode import DecodePlan, plan_decode, sharded_decoder
from tapvideo.parallel.launch import check_agreement, check_same_latents, joined
from tapvideo.parallel.topology import AXES, Topology
from tapvideo.pipeline import Pipeline, accelerated, hide_loading_bars, latent_size, load_pipeline, resolve_device
from tapvideo.record import messages, new_record, package_versions
from tapvideo.report import write_report
from tapvideo.report.data import steps_and_maps
from tapvideo.resolve import resolve
from tapvideo.run_folder import Job, kept_if_used, list_jobs, make_folder, read_prompts, run_folder, shape
from tapvideo.sample import RunFailed, Sample, check_frames, sample
from tapvideo.schedule import Plan, StepKind, full_plan, strip
from tapvideo.schedulers import experts, noise_levels, plan_steps
from tapvideo.weights import check_known_sizes


def run(config: GenerateConfig, *, command: str = "") -> Path:
    """Make every clip of a config, with its record and report.

    Under `torchrun` the ranks share the work as `config.parallel` says; rank 0 keeps the record and prints.

    Args:
        config: what to make.
        command: the command line, for the record and the report.

    Returns:
        The run's folder.

    Raises:
        ConfigError: if the config asks for what is not possible here.
        RunFailed: if latents turn to NaN, or a run that planned forecast steps made none.
        RankFailed: among several ranks, for all of this on the first one that it happens to; `Hushed` on the others.
    """
    prompts = read_prompts(config)
    read_images(config)
    console = Console(verbose=config.verbose)  # which hushes the other ranks
    config = resolve(config)
    plan = plan_steps(config)
    folder = run_folder(config, prompts)
    if config.dry_run:
        check_known_sizes(config)
        print_plan(config, plan)
        return folder
    facts = {**shape(config), "prompts": prompts, "versions": package_versions()}
    with joined(config.parallel, resolve_device(config), facts) as topology:
        make_all(config, prompts, plan, folder, topology, console, command)
    return folder


def make_all(
    config: GenerateConfig,
    prompts: list[str],
    plan: Plan,
    folder: Path,
    topology: Topology,
    console: Console,
    command: str,
) -> None:
    """Load the pipeline and make every clip that falls to this rank's group; rank 0 keeps the record of all."""
    make_folder(folder)  # better now than after the first clip
    with kept_if_used(folder):
        session = open_session(config, plan, topology, console)
    if _compares(config):
        session.warm_up()
    elif config.compare:
        console.say("nothing is compared: tap=off is what compare=true sets beside an accelerated video")
    record, clips = new_record(config, command, resolve_device(config), strip(plan), experts(config)), []
    record.mesh = {name: getattr(topology, name).size for name in AXES}
    jobs = list_jobs(config, prompts)
    for start in range(0, len(jobs), topology.dp.size):
        own = start + topology.dp.rank
        made = session.make_clip(jobs[own]) if own < len(jobs) else None
        if not topology.is_writer:
            continue
        written = write_clip(folder, jobs[own], made, config) if made else None
        shown = report_clip(folder, written, made) if written and made else None
        for clip, view in topology.dp.exchange_objects((written, shown)):
            if clip and view and rank() == 0:
                record.clips.append(clip)
                clips.append(view)
                console.say(describe(clip))
        if rank() == 0:
            record.mean = mean_comparison(record.clips)
            record.messages = messages(topology.ledger)
            record.save(folder / "run.json")  # after every round: an interrupted run keeps what it has
    if rank() == 0:
        if record.mean and record.mean.num_clips > 1:
            console.say(describe_mean(record.mean))
        write_report(folder / "report.html", report_of(record, config, clips))
        console.say(str(folder / "report.html"))


def open_session(
    config: GenerateConfig, plan: Plan, topology: Topology, console: Console, *, bars: bool = True
) -> "Session":
    """Load the pipeline, once for all clips, and say what is going to happen.

    Args:
        config: what to make.
        plan: the kinds of all steps.
        topology: the ranks that share the work.
        console: what is said, it says.
        bars: whether every clip has a progress bar.

    Raises:
        ConfigError: if the model, its placement or the mesh is not possible here.
    """
    hide_loading_bars(downloads=not console.loud)
    console.say(f"loading {config.model.weights}")
    pipe = load_pipeline(config)
    check_branches(config, topology)
    decode = plan_decode(config.parallel, topology, pipe.vae, height=config.height, width=config.width)
    check_agreement(topology.world, {"decoding (parallel.vae)": decode.how})  # DistVAE may be missing on one machine
    console.say(f"{config.tap.name}: {plan_summary(plan)}\n{expert_strip(config, plan)}")
    if topology.world.size > 1:
        console.say(f"ranks: {topology}; decoding: {decode.how} ({decode.reason})")
    console.say(check_memory(pipe, config, topology))
    return Session(pipe, config, plan, topology, decode, console if bars else Console(verbose=False))


def check_branches(config: GenerateConfig, topology: Topology) -> None:
    """Refuse to split guidance that is not there, or in one piece.

    Raises:
        ConfigError: if every step is one transformer call, and there are two halves of ranks.
    """
    if topology.cfg.size == 1:
        return
    if config.kind.is_fused:
        raise ConfigError(
            f"parallel.cfg={topology.cfg.size} splits guidance, and a {config.model.pipeline} calls its transformer "
            "once for both branches; allowed: parallel.cfg=1"
        )
    if not config.is_guided:
        key = config.kind.guidance
        value = f"guidance={config.guidance:g}" if key == "guidance" else f"model.call.{key}=1"
        raise ConfigError(
            f"parallel.cfg={topology.cfg.size} splits guidance, and {value} has one branch only; "
            f"allowed: {value.partition('=')[0]} above 1, or parallel.cfg=1"
        )


def check_memory(pipe: Pipeline, config: GenerateConfig, topology: Topology) -> str:
    """What this rank will keep between steps, in words.

    Raises:
        ConfigError: if kept keys and values will not fit, or the tokens do not go with the number of ranks.
    """
    size = latent_size(pipe, config)
    check_shards(num_tokens(pipe.transformer, size), topology)
    kept = kept_on_this_rank(
        pipe.transformer,
        config.tap_config,
        topology,
        latent_size=size,
        num_steps=config.steps,
        branches=config.branches,
    )
    check_room(kept, config.tap_config, resolve_device(config))
    return f"kept between steps, per rank: {kept}"


def plan_summary(plan: Plan) -> str:
    """How many steps of each kind."""
    forecasts = plan.count(StepKind.FORECAST)
    return f"{len(plan) - forecasts} full and {forecasts} forecast of {len(plan)} steps"


def print_plan(config: GenerateConfig, plan: Plan) -> None:
    """The table that a dry run shows: every step with its sigma, timestep and kind."""
    if rank() != 0:
        return
    print(f"{'step':>4}  {'sigma':>7}  {'timestep':>8}  kind")
    levels, unknown = _levels(config)
    for index, (sigma, timestep) in enumerate(levels):
        print(f"{index:>4}  {_number(sigma, '.4f'):>7}  {_number(timestep, '.2f'):>8}  {plan[index]}")
    print(f"\n{expert_strip(config, plan)}\n{plan_summary(plan)}")
    if unknown:
        print(f"sigmas and timesteps are not known: {unknown}")
    if config.tap.enabled and config.steps < config.schedule.min_steps:
        print(f"not accelerated: steps={config.steps} is less than schedule.min_steps={config.schedule.min_steps}")


def expert_strip(config: GenerateConfig, plan: Plan) -> str:
    """The plan in one line, a bar where the second expert takes over."""
    return "|".join(strip(plan[steps.start : steps.stop]) for steps in experts(config).values() if steps)


def _levels(config: GenerateConfig) -> tuple[list[tuple[float | None, float | None]], str]:
    """Sigmas and timesteps of a run as far as they can be known, and why not."""
    try:
        return [*noise_levels(config)], ""
    except ConfigError as error:
        return [(None, None)] * config.steps, str(error)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


@dataclass(frozen=True, slots=True)
class Session:
    """A loaded pipeline, and what all clips of a run have in common."""

    pipe: Pipeline
    config: GenerateConfig
    plan: Plan
    topology: Topology
    decode: DecodePlan
    console: Console

    def warm_up(self) -> None:
        """A few steps of both kinds at full size, so that neither side of a comparison pays for first calls."""
        anchors = self.config.tap.anchors
        schedule = ScheduleConfig(kind="explicit", steps=list(range(anchors)), warmup=1, min_steps=0)
        tap = self.config.tap
        if tap.uses_calibrated_weights:  # for runs of their own length; others do the same work
            fixed = {"family": "lagrange", "orders": [anchors - 1], "lookback": 0.0}
            tap = replace(tap, blend=0.0, guard=False, **(fixed if tap.family == "calibrated" else {}))
        short = replace(self.config, steps=anchors + 1, schedule=schedule, tap=tap)
        with accelerated(self.pipe, short, self.topology):
            self._sample(short, prompt="", seed=0, on_step=lambda step: None)

    def make_clip(self, job: Job) -> Made:
        """One clip, and its baseline before it where they are compared; all ranks of its group make it together.

        Raises:
            RunFailed: if latents or frames turn to NaN, or forecast steps were planned and none was made.
            PeerLost: if another rank does not answer, or has come to other latents.
        """
        config = self.config
        self.console.say(f"\n{job.prompt}, seed {job.seed}")
        baseline = None
        if _compares(config):
            with accelerated(self.pipe, unaccelerated(config), self.topology):
                baseline = self._make(job, "baseline", full_plan(config.steps))
        self.topology.ledger.clear()  # the record tells of accelerated clips
        with accelerated(self.pipe, config, self.topology) as tap:
            made = self._make(job, config.tap.name if config.tap.enabled else "plain", self.plan)
            if tap is not None and config.tap.enabled:
                tap.gather_trace()
            for clip in (baseline, made):
                if clip is not None:
                    check_frames(clip, job.seed)
            if tap is None or not config.tap.enabled:
                return Made(made, baseline, summary=None, steps=[], maps=[])
            summary = tap.summary()
            shown = [steps_and_maps(trace) for trace in tap.traces.values()]  # one for each expert
            steps, maps = [x for own, _ in shown for x in own], [x for _, own in shown for x in own]
        check_forecasts(self.plan, summary)
        return Made(made, baseline, summary, steps, maps)

    def _make(self, job: Job, label: str, kinds: Plan) -> Sample:
        with self.console.step_bar(label, kinds) as on_step:
            made = self._sample(self.config, job.prompt, job.seed, on_step)
        check_same_latents(self.topology, made.latents)
        return made

    def _sample(self, config: GenerateConfig, prompt: str, seed: int, on_step: Callable[[int], None]) -> Sample:
        with sharded_decoder(self.pipe.vae, self.decode, self.topology):
            return sample(self.pipe, config, prompt, seed, on_step, decode=self.decode.decodes)


def unaccelerated(config: GenerateConfig) -> GenerateConfig:
    """The same run with every step full."""
    return replace(config, tap=replace(config.tap, enabled=False, recompute=RecomputeConfig()))


def check_forecasts(plan: Plan, summary: TapSummary) -> None:
    """Refuse a run that looks accelerated and is not, or not as planned.

    Raises:
        RunFailed: if the forecast steps made are not those that were planned.
    """
    planned = [step for step, kind in enumerate(plan) if kind is StepKind.FORECAST]
    if planned and not summary.forecast_steps:
        raise RunFailed(
            f"{len(planned)} forecast steps were planned and none was made: "
            "the pipeline did not tell TAP which step it is on (the warnings say more)"
        )
    if planned != summary.forecast_steps:
        raise RunFailed(f"forecast steps {planned} were planned and {summary.forecast_steps} were made")


def _compares(config: GenerateConfig) -> bool:
    """Plain diffusers is not compared with itself."""
    return config.compare and config.tap.enabled
