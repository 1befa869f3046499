"""`tapvideo-submit` and `launch/submit.py`: a run checked, then given to SLURM."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from tapvideo.batch.config import BatchConfig
from tapvideo.batch.items import Item
from tapvideo.batch.run import prepare
from tapvideo.batch.submit import Command, check_array, job_name, make_command, score_commands, split_arguments
from tapvideo.cli.batch import as_override
from tapvideo.cli.explain import explain
from tapvideo.config import Config, ConfigError, GenerateConfig, config_dir, from_hydra
from tapvideo.generate import plan_steps
from tapvideo.resolve import resolve
from tapvideo.run_folder import read_prompts, run_folder
from tapvideo.tiny.scenes import parse_caption
from tapvideo.vbench.config import ScenesConfig, VBenchConfig
from tapvideo.weights import check_sizes, find_configs, find_weights

PROGRAM = "tapvideo-submit"
USAGE = f"""usage: {PROGRAM} generate|batch KEY=VALUE ... [--dry-run] [--again] [SBATCH FLAGS]
                 [--score=vbench|scenes [--score-key=KEY=VALUE ...] [--score-flag=SBATCH_FLAG ...]]

Checks the run as {PROGRAM.replace("submit", "batch")} would, prints the commands of sbatch, and submits them.

  generate, batch   what to run, with its keys (tapvideo-generate --cfg job, tapvideo-batch --cfg job)
  --dry-run         check and print, submit nothing
  --again           also if the same run is in the queue; it then waits until that one has ended
  --score           after a batch, once every clip is there: eval/vbench.py or eval/scenes.py, into FOLDER/scores
  --score-key       a key of it, e.g. --score-key=dimensions=[temporal_flickering,dynamic_degree]: a job each
  --score-flag      a flag of sbatch for it, e.g. --score-flag=--partition=cpu
  SBATCH FLAGS      everything else with a dash, as --flag=value: --partition=gpu --time=8:00:00 --array=3,7

e.g. {PROGRAM} batch prompts=prompts.txt seeds=[0,1,2,3,4] shards=8 model=wan --partition=gpu --array=0-7%4"""
EXIT_RUN, EXIT_CONFIG, EXIT_QUEUED = 1, 2, 4


class _Refused(RuntimeError):
    """Something that SLURM said, or that is in its queue."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


@dataclass(slots=True)
class _Asked:
    """A command line, taken apart."""

    kind: str
    keys: list[str]
    flags: list[str]
    dry_run: bool = False
    again: bool = False
    score: str | None = None
    score_keys: list[str] = field(default_factory=list[str])
    score_flags: list[str] = field(default_factory=list[str])


def main(argv: Sequence[str] | None = None) -> None:
    """Submit a run; the exit code is 2 for a config error, 4 for a run that is in the queue, 1 for SLURM's refusal."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE)
        sys.exit(0 if arguments else EXIT_CONFIG)
    try:
        asked = _parse(arguments)
        folder, commands = _plan(asked)
        if not asked.dry_run:
            _check_queue(folder, again=asked.again)
            (folder / "logs").mkdir(parents=True, exist_ok=True)  # SLURM makes no folders for its logs
        _submit(commands, dry_run=asked.dry_run)
    except ConfigError as error:
        _fail(str(error), EXIT_CONFIG)
    except (HydraException, OmegaConfBaseException) as error:
        _fail(explain(error), EXIT_CONFIG)
    except _Refused as error:
        _fail(str(error), error.code)


def _parse(arguments: list[str]) -> _Asked:
    kind, *rest = arguments
    if kind not in ("generate", "batch"):
        raise ConfigError(f"{kind!r} cannot be submitted; allowed: generate, batch")
    asked = _Asked(kind, [], [])
    passed: list[str] = []
    for argument in rest:
        name, _, value = argument.partition("=")
        if argument == "--dry-run":
            asked.dry_run = True
        elif argument == "--again":
            asked.again = True
        elif name == "--score":
            asked.score = value
        elif name == "--score-key":
            asked.score_keys.append(value)
        elif name == "--score-flag":
            asked.score_flags.append(value)
        else:
            passed.append(argument)
    asked.keys, asked.flags = split_arguments(passed)
    return asked


def _plan(asked: _Asked) -> tuple[Path, list[Command]]:
    """The folder of the run, and what to submit; every check that needs no GPU has passed."""
    if asked.kind == "generate":
        if asked.score is not None:
            raise ConfigError(f"--score={asked.score!r} is of batches; allowed: {PROGRAM} batch")
        generate = resolve(_compose(GenerateConfig, asked.kind, asked.keys))
        folder = run_folder(generate, read_prompts(generate)).resolve()
        plan_steps(generate)
        check_sizes(generate, find_configs(generate.model))
        find_weights(generate.model)
        return folder, [make_command("generate", folder, asked.keys, asked.flags, shards=1)]
    config = _compose(BatchConfig, asked.kind, asked.keys)
    if asked.score is not None and config.kind.makes_images:
        raise ConfigError(f"--score={asked.score!r} is of videos, and a {config.model.pipeline} makes pictures")
    batch = prepare(config)
    check_array(asked.flags, config.shards)
    folder = batch.folder.root.resolve()
    commands = [make_command("batch", folder, asked.keys, asked.flags, shards=config.shards)]
    if asked.score is not None:
        commands += score_commands(asked.score, folder, asked.score_keys, asked.score_flags)
        _check_score(asked.score, asked.score_keys, batch.items)
    shown = f"{len(batch.items)} clips in {config.shards} shards"
    print(f"# {folder}: {shown}, {_num_there(batch.folder.videos, batch.items)} are there")
    return folder, commands


def _check_score(stage: str, keys: list[str], items: list[Item]) -> None:
    """What the scoring job would refuse days later is refused now."""
    _compose({"vbench": VBenchConfig, "scenes": ScenesConfig}[stage], stage, keys)
    strange = next((i.prompt for i in items if not _is_drawn(i.prompt)), None) if stage == "scenes" else None
    if strange is not None:
        raise ConfigError(
            f"--score=scenes: {strange[:120]!r} is no caption of the drawn world; allowed: --score=vbench"
        )


def _is_drawn(prompt: str) -> bool:
    try:
        parse_caption(prompt)
    except ValueError:
        return False
    return True


def _num_there(videos: Path, items: Sequence) -> int:
    there = {path.name for path in videos.glob("*.*")}
    return sum(item.file in there for item in items)


def _compose(schema: type[Config], name: str, keys: Sequence[str]) -> Config:
    with initialize_config_dir(str(config_dir().resolve()), version_base="1.3"):
        return from_hydra(schema, compose(name, [as_override(key) for key in keys]))


def _check_queue(folder: Path, *, again: bool) -> None:
    """Refuse what is in the queue already; what slips through waits, by sbatch's singleton."""
    if shutil.which("sbatch") is None:
        raise _Refused("sbatch is not here: this is no machine of a SLURM cluster; --dry-run works anywhere", EXIT_RUN)
    queued = _call(["squeue", "--noheader", "--me", f"--name={job_name(folder)}", "--format=%F"], {})
    if queued and not again:
        jobs = ", ".join(dict.fromkeys(queued.split()))
        told = f"{folder.name} is in the queue already, as job {jobs}"
        raise _Refused(f"{told}; `scancel` it, wait for it, or submit --again to run after it", EXIT_QUEUED)


def _submit(commands: Sequence[Command], *, dry_run: bool) -> None:
    jobs: dict[str, str] = {}
    for command in commands:
        print(f"{command.name}=$({command})", flush=True)
        if dry_run:
            continue
        try:
            told = _call(command.words(jobs), command.environment)
        except _Refused as error:
            if not jobs:
                raise
            _call(["scancel", *jobs.values()], {})  # all or nothing: the same command can be given again
            raise _Refused(f"{error}; cancelled job {', '.join(jobs.values())}", error.code) from error
        jobs[command.name] = told.partition(";")[0].strip()  # behind it is the cluster, where there are several
        print(f"# {command.name}={jobs[command.name]}", flush=True)


def _call(words: list[str], environment: dict[str, str]) -> str:
    # The jobs run what runs here: a venv that is not activated has no `python` on its path.
    settings = {"TAPVIDEO_PYTHON": sys.executable, **os.environ, **environment}
    done = subprocess.run(words, env=settings, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        raise _Refused(f"{words[0]}: {' '.join(done.stderr.split())}", EXIT_RUN)
    return done.stdout.strip()


def _fail(text: str, code: int) -> None:
    print(f"{PROGRAM}: {' '.join(text.split())}", file=sys.stderr, flush=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
