"""The run itself: every prompt with every seed, accelerated, and without acceleration where the two are compared."""

from dataclasses import replace
from pathlib import Path

from tapvideo.config import ConfigError, GenerateConfig, ScheduleConfig
from tapvideo.console import Console, rank
from tapvideo.enable import TapSummary
from tapvideo.outputs import Made, describe, describe_mean, mean_comparison, report_clip, report_of, write_clip
from tapvideo.pipeline import (
    WanPipeline,
    accelerated,
    hide_loading_bars,
    load_pipeline,
    noise_levels,
    resolve_device,
)
from tapvideo.record import new_record
from tapvideo.report import write_report
from tapvideo.report.data import steps_and_maps
from tapvideo.run_folder import Job, list_jobs, read_prompts, run_folder
from tapvideo.sample import RunFailed, Sample, sample
from tapvideo.schedule import Plan, StepKind, full_plan, strip
from tapvideo.stack import make_plan


def run(config: GenerateConfig, *, command: str = "") -> Path:
    """Make every clip of a config, with its record and report.

    Every rank computes; rank 0 writes and prints.

    Args:
        config: what to make.
        command: the command line, for the record and the report.

    Returns:
        The run's folder.

    Raises:
        ConfigError: if the config asks for what is not possible here.
        RunFailed: if latents turn to NaN, or a run that planned forecast steps made none.
    """
    prompts = read_prompts(config)
    plan = plan_steps(config)
    folder = run_folder(config, prompts)
    console = Console(verbose=config.verbose)
    if config.dry_run:
        print_plan(config, plan)
        return folder
    hide_loading_bars(downloads=not console.loud)
    console.say(f"loading {config.model.weights}")
    pipe = load_pipeline(config)
    console.say(f"{config.tap.name}: {plan_summary(plan)}\n{strip(plan)}")
    if _compares(config):
        warm_up(pipe, config)
    record, clips = new_record(config, command, resolve_device(config), strip(plan)), []
    for job in list_jobs(config, prompts):
        made = make_clip(pipe, config, job, plan, console)
        if rank() == 0:
            record.clips.append(write_clip(folder, job, made, config))
            record.mean = mean_comparison(record.clips)
            clips.append(report_clip(folder, record.clips[-1], made))
            record.save(folder / "run.json")  # after every clip: an interrupted run keeps what it has
            console.say(describe(record.clips[-1]))
    if rank() == 0:
        if record.mean and record.mean.num_clips > 1:
            console.say(describe_mean(record.mean))
        write_report(folder / "report.html", report_of(record, config, clips))
        console.say(str(folder / "report.html"))
    return folder


def plan_steps(config: GenerateConfig) -> Plan:
    """The kinds of all steps.

    Raises:
        ConfigError: if the schedule names steps that the run does not have.
    """
    try:
        return make_plan(config.tap_config, config.steps)
    except ValueError as error:
        raise ConfigError(f"{error} (steps={config.steps})") from error


def plan_summary(plan: Plan) -> str:
    """How many steps of each kind."""
    forecasts = plan.count(StepKind.FORECAST)
    return f"{len(plan) - forecasts} full and {forecasts} forecast of {len(plan)} steps"


def print_plan(config: GenerateConfig, plan: Plan) -> None:
    """The table that a dry run shows: every step with its sigma, timestep and kind."""
    if rank() != 0:
        return
    print(f"{'step':>4}  {'sigma':>7}  {'timestep':>8}  kind")
    for index, (sigma, timestep) in enumerate(noise_levels(config)):
        print(f"{index:>4}  {sigma:>7.4f}  {timestep:>8.2f}  {plan[index]}")
    print(f"\n{strip(plan)}\n{plan_summary(plan)}")
    if config.tap.enabled and config.steps < config.schedule.min_steps:
        print(f"not accelerated: steps={config.steps} is less than schedule.min_steps={config.schedule.min_steps}")


def warm_up(pipe: WanPipeline, config: GenerateConfig) -> None:
    """A few steps of both kinds at full size, so that neither side of a comparison pays for first calls."""
    anchors = config.tap.anchors
    schedule = ScheduleConfig(kind="explicit", steps=list(range(anchors)), warmup=1, min_steps=0)
    short = replace(config, steps=anchors + 1, schedule=schedule)
    with accelerated(pipe, short):
        sample(pipe, short, prompt="", seed=0, on_step=lambda step: None)


def make_clip(pipe: WanPipeline, config: GenerateConfig, job: Job, plan: Plan, console: Console) -> Made:
    """One clip, and its baseline before it where they are compared.

    Raises:
        RunFailed: if latents turn to NaN, or forecast steps were planned and none was made.
    """
    console.say(f"\n{job.prompt}, seed {job.seed}")

    def make(label: str, kinds: Plan) -> Sample:
        with console.step_bar(label, kinds) as on_step:
            return sample(pipe, config, job.prompt, job.seed, on_step)

    baseline = make("baseline", full_plan(config.steps)) if _compares(config) else None
    if not config.tap.enabled:
        return Made(make("plain", plan), baseline, summary=None, steps=[], maps=[])
    with accelerated(pipe, config) as tap:
        made = make(config.tap.name, plan)
        summary = tap.summary()
        steps, maps = steps_and_maps(tap.trace)
    check_forecasts(plan, summary)
    return Made(made, baseline, summary, steps, maps)


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
