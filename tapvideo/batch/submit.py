"""The `sbatch` commands of a run: what to submit, under which name, after what."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tapvideo.checks import ConfigError

SCORES = ("vbench", "scenes")
_DIMENSIONS = re.compile(r"dimensions=\[([\w, ]*)\]")


@dataclass(frozen=True, slots=True)
class Command:
    """One call of sbatch."""

    name: str
    """What later commands call its job, as `$NAME`."""
    template: Path
    flags: list[str]
    """Of sbatch; in a later command `$NAME` stands for the number of an earlier one's job."""
    arguments: list[str]
    """Of the template."""
    environment: dict[str, str] = field(default_factory=dict)

    def words(self, jobs: Mapping[str, str]) -> list[str]:
        """The command, with the jobs that are known in their places."""
        flags = [re.sub(r"\$(\w+)", lambda m: jobs.get(m[1], m[0]), flag) for flag in self.flags]
        return ["sbatch", "--parsable", *flags, str(self.template), *self.arguments]

    def __str__(self) -> str:
        """As a line for a shell."""
        settings = [f"{key}={shlex.quote(value)}" for key, value in self.environment.items()]
        # A flag's $NAME is for the shell that this line is copied into; an argument's dollar is a dollar.
        flags = [flag if re.fullmatch(r"[\w@%+=:,./$-]+", flag) else shlex.quote(flag) for flag in self.flags]
        return " ".join([*settings, "sbatch --parsable", *flags, shlex.join([str(self.template), *self.arguments])])


def templates() -> Path:
    """The folder of sbatch files: inside the installed package, or beside it in a clone."""
    inside = Path(__file__).parents[1] / "slurm"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "launch" / "slurm"


def job_name(folder: Path) -> str:
    """The name of all jobs that make what is in a folder: only one of them may be in the queue."""
    return f"tapvideo-{folder.name}"


def make_command(kind: str, folder: Path, arguments: Sequence[str], flags: Sequence[str], *, shards: int) -> Command:
    """The job that makes a run.

    Args:
        kind: `generate` or `batch`.
        folder: of the run.
        arguments: `key=value` for it.
        flags: of sbatch, which win over ours.
        shards: of a batch.
    """
    dependencies = [flag.partition("=")[2] for flag in flags if flag.startswith("--dependency=")]
    rest = [flag for flag in flags if not flag.startswith("--dependency=")]
    own = [f"--job-name={job_name(folder)}", f"--dependency={','.join([*dependencies, 'singleton'])}"]
    own.append(f"--output={_log(folder, 'generate-%j' if kind == 'generate' else 'batch-%A_%a')}")
    if kind == "batch":
        own.append(f"--array=0-{shards - 1}")
    return Command("MAKE", templates() / f"{kind}.sbatch", [*own, *rest], list(arguments))


def score_commands(stage: str, folder: Path, arguments: Sequence[str], flags: Sequence[str]) -> list[Command]:
    """The jobs that score a batch once all of it is there; one for each dimension that is named, and one that collects.

    Args:
        stage: `vbench` or `scenes`.
        folder: of the batch.
        arguments: `key=value` for the stage.
        flags: of sbatch, which win over ours.

    Raises:
        ConfigError: if there is no such stage.
    """
    if stage not in SCORES:
        raise ConfigError(f"--score={stage!r} is not known; allowed: {', '.join(SCORES)}")
    names = next((m[1].replace(",", " ").split() for m in map(_DIMENSIONS.fullmatch, arguments) if m), [])
    places = [f"videos={folder}", f"output_dir={folder / 'scores'}"]

    def command(name: str, after: str, log: str, extra: list[str], keys: list[str], **environment: str) -> Command:
        # Without the second flag a job whose dependency cannot be met any more waits for ever.
        own = [f"--job-name={job_name(folder)}-score", f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"]
        own += [f"--output={_log(folder, log)}", *extra]
        return Command(name, templates() / "score.sbatch", [*own, *flags], [stage, *places, *keys], environment)

    if stage == "scenes" or len(names) < 2:
        return [command("SCORE", "$MAKE", f"{stage}-%j", [], [*arguments])]
    others = [key for key in arguments if not _DIMENSIONS.fullmatch(key)]
    array, each = f"--array=0-{len(names) - 1}", "vbench-%A_%a"
    return [
        command("SCORE", "$MAKE", each, [array], others, DIMENSIONS=" ".join(names)),
        command("COLLECT", "$SCORE", "vbench-%j", [], [*arguments, "collect=true"]),
    ]


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """`key=value` arguments, and flags of sbatch: what begins with a dash, and a word without `=` that follows one."""
    keys: list[str] = []
    flags: list[str] = []
    is_value = False
    for argument in arguments:
        if argument.startswith("-"):
            flags.append(argument)
            is_value = "=" not in argument
        elif is_value and "=" not in argument:
            flags.append(argument)
            is_value = False
        elif "=" in argument:
            keys.append(argument)
            is_value = False
        else:
            raise ConfigError(f"{argument!r} is neither KEY=VALUE nor a flag of sbatch; allowed: --flag=value")
    return keys, _joined(flags)


def _joined(flags: list[str]) -> list[str]:
    """`--dependency X` as `--dependency=X`, the one flag that is merged with ours."""
    joined: list[str] = []
    for flag in flags:
        if joined and joined[-1] in ("--dependency", "-d") and not flag.startswith("-"):
            joined[-1] = f"--dependency={flag}"
        else:
            joined.append(flag)
    return joined


def _log(folder: Path, name: str) -> Path:
    return (folder / "logs" / f"{name}.out").resolve()


def check_array(flags: Sequence[str], shards: int) -> None:
    """Refuse array tasks that no shard is for.

    Raises:
        ConfigError: if one is `shards` or more.
    """
    for flag in flags:
        spec = re.match(r"(?:--array=|-a)([\d,:%-]+)", flag)
        tasks = re.findall(r"\d+", re.sub(r"[:%]\d+", "", spec[1])) if spec else []
        if any(int(task) >= shards for task in tasks):
            raise ConfigError(f"{flag}: there are {shards} shards; allowed: tasks 0 to {shards - 1}")
