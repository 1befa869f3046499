"""A calibration made: un-accelerated clips watched, and how far an error at each step moves what comes out."""

import hashlib
import itertools
import os
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from tapvideo.calibration.file import Calibration, calibrate, load_calibration
from tapvideo.calibration.find import SUFFIX, find_calibration, own_folder
from tapvideo.config import ConfigError, GenerateConfig
from tapvideo.console import Console
from tapvideo.models.watch import watched
from tapvideo.pipeline import Pipeline, hide_loading_bars, load_pipeline
from tapvideo.record import package_versions
from tapvideo.recorder import Recorder, apart, mixture
from tapvideo.rehearsal import JUDGES, Known, Shown, measure_sensitivity, rehearse, rehearsed_counts
from tapvideo.resolve import check_experts, run_kind
from tapvideo.run_folder import read_prompts, slug
from tapvideo.sample import sample
from tapvideo.schedulers import expert_starts, experts
from tapvideo.tap_config import AUTO, ForecastConfig, ScheduleConfig

T = TypeVar("T")

_LEAST_STEPS = 12
_LEAST_OF_EXPERT = 3


@dataclass(kw_only=True)
class CalibrateConfig(GenerateConfig):
    """Everything `launch/calibrate.py` reads: what `launch/generate.py` does, and the keys below."""

    tap: ForecastConfig = field(default_factory=lambda: ForecastConfig(name="off", enabled=False))
    output: str | None = None
    """The file to write; by default one in the user's cache folder, where `tap.calibration=auto` looks."""
    tokens: int = 1024
    """Tokens, the same of every clip, whose residuals are kept of all steps while a clip is made."""
    probes: int = 12
    """Steps at which a forecast is put into an un-accelerated run, to see how far it moves what comes out."""
    probe_clips: int = 2
    """Clips on which that is done: each takes `probes` runs."""
    speedups: list[float] = field(default_factory=lambda: [2.0, 2.5, 3.5, 5.0])
    """Those whose schedules are rehearsed: of a few that suggest themselves, the one that comes nearest is kept."""
    rehearsal_clips: int = 2
    """Clips on which that is done: of the same prompts, with seeds that the weights were not fitted to."""
    moves: int = 0
    """Further schedules that are tried for each of them: the best so far with one full step moved. Of use with two
    dozen rehearsal clips or more; most schedules are dropped after a few. A third of the clips has the last word."""
    rehearse: str | None = None
    """A calibration of such runs, or `auto` for the one that fits: only its schedules are rehearsed anew, for other
    `speedups` or on more clips."""

    def __post_init__(self) -> None:
        """Check every value that does not depend on the model."""
        super().__post_init__()
        for key, least in (("tokens", 1), ("probes", 1), ("probe_clips", 1), ("rehearsal_clips", 0), ("moves", 0)):
            if getattr(self, key) < least:
                raise ConfigError(f"{key}={getattr(self, key)!r} is too small; allowed: {least} or more")
        if self.steps < _LEAST_STEPS:
            raise ConfigError(f"steps={self.steps} leaves nothing to forecast; allowed: {_LEAST_STEPS} or more")
        if self.probes >= self.steps:
            raise ConfigError(f"probes={self.probes!r} of {self.steps} steps; allowed: 1 to {self.steps - 1}")
        if any(not 1 < speedup <= self.steps / 2 for speedup in self.speedups):
            raise ConfigError(f"speedups={self.speedups!r}; allowed: numbers above 1, up to {self.steps / 2:g}")
        if self.rehearse is not None and not self.rehearsal_clips:
            raise ConfigError(
                f"rehearsal_clips=0, and rehearse={self.rehearse!r} does nothing else; allowed: 1 or more"
            )
        if self.moves and not (self.rehearsal_clips and self.speedups):
            lacking = "speedups=[]" if self.rehearsal_clips else "rehearsal_clips=0"
            raise ConfigError(f"moves={self.moves!r} needs clips and speedups, and {lacking}; allowed here: 0")
        if self.output is not None and not self.output.endswith(SUFFIX):
            raise ConfigError(f"output={self.output!r} is no name of a calibration; allowed: names ending in {SUFFIX}")


def run(config: CalibrateConfig, *, command: str = "") -> Path:
    """Make a calibration and its file.

    Args:
        config: model, scheduler, steps and guidance that it is for, and the clips that it is made from.
        command: the command line, for the file.

    Returns:
        The file.

    Raises:
        ConfigError: if the config asks for what is not possible here.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1:
        raise ConfigError(f"WORLD_SIZE={ranks}: a calibration is made by one process; allowed: 1, without torchrun")
    _check_idle(config)
    prompts, console = read_prompts(config), Console(verbose=config.verbose)
    path = Path(config.output).expanduser() if config.output else own_folder() / f"{_name(config)}{SUFFIX}"
    clips = [(prompt, seed) for prompt in prompts for seed in config.seeds]
    before, _ = _before(config), _starts(config)
    _check_moves(config, len(clips))
    console.say(f"{_amount(config, len(clips))}\n{path}")
    if config.dry_run:
        return path
    hide_loading_bars(downloads=not console.loud)
    _check_output(path)
    pipe = load_pipeline(config)
    arguments = pipe, config, clips, command, console
    found = _measure(*arguments) if before is None else _again(*arguments, before)
    found.save(path)
    console.say(str(path))
    return path


def _check_idle(config: CalibrateConfig) -> None:
    """Refuse what is of use to accelerated clips alone."""
    why = "a calibration is made of un-accelerated clips, and rehearses the schedules of `speedups` by itself"
    if config.tap.enabled:
        raise ConfigError(f"tap={config.tap.name} has no use here: {why}; allowed: off")
    asked, plain = asdict(config.schedule), asdict(ScheduleConfig())
    changed = next((f"schedule.{name}={value!r}" for name, value in asked.items() if value != plain[name]), None)
    if changed is not None:
        raise ConfigError(f"{changed} has no use here: {why}; allowed: schedule=interval as it comes")
    if config.compare:
        raise ConfigError(f"compare=true has no use here: {why}; allowed: false")


def _check_moves(config: CalibrateConfig, clips: int) -> None:
    shown = min(clips, config.rehearsal_clips)
    if config.moves and shown < JUDGES:
        raise ConfigError(
            f"moves={config.moves!r} needs {JUDGES} clips or more, one of which no move sees, and rehearsals have "
            f"{shown}; allowed: 0, or rehearsal_clips={JUDGES} and as many prompts x seeds"
        )


def _amount(config: CalibrateConfig, clips: int) -> str:
    if config.rehearse is not None:
        return f"{min(clips, config.rehearsal_clips)} clips, on which schedules are rehearsed{_moved(config)}"
    rehearsed = min(clips, config.rehearsal_clips) if config.speedups else 0
    told = f"{clips} clips, {min(clips, config.probe_clips)} of them {config.probes} times more"
    return f"{told}; {rehearsed} others, on which schedules are rehearsed{_moved(config)}" if rehearsed else told


def _moved(config: CalibrateConfig) -> str:
    return f", and up to {config.moves} more for each of {len(config.speedups)} speedups" if config.moves else ""


def _before(config: CalibrateConfig) -> Calibration | None:
    """The calibration whose schedules are to be rehearsed anew."""
    if config.rehearse is None:
        return None
    kind = run_kind(config)
    path = find_calibration(kind) if config.rehearse == AUTO else Path(config.rehearse).expanduser()
    if path is None:
        raise ConfigError(f"rehearse={AUTO!r}: there is no calibration for {kind}; allowed: null, which makes one")
    found = load_calibration(path)
    if not kind.matches(found):
        raise ConfigError(
            f"rehearse={config.rehearse!r} is not for {kind}; allowed: a calibration of such runs, or {AUTO}"
        )
    check_experts(config, found, f"rehearse={config.rehearse!r}")
    return found


def _again(
    pipe: Pipeline,
    config: CalibrateConfig,
    clips: list[tuple[str, int]],
    command: str,
    console: Console,
    before: Calibration,
) -> Calibration:
    """The same calibration with schedules that were rehearsed once more."""
    watched_clips = [(prompt, seed) for prompt, seed in before.about.get("made", {}).get("clips", [])]
    chosen = unseen(_some(clips, config.rehearsal_clips), watched_clips)
    facts = {"speedups": config.speedups, "moves": config.moves, "versions": package_versions()}
    again = {"command": command, "clips": chosen, **facts}
    earlier = before.about.get("rehearsed", [])
    all_of_them = [*(earlier if isinstance(earlier, list) else [earlier]), again]
    found = replace(before, about={**before.about, "rehearsed": all_of_them})
    return _rehearse(pipe, config, found, chosen, console)


def _rehearse(
    pipe: Pipeline, config: CalibrateConfig, found: Calibration, clips: list[tuple[str, int]], console: Console
) -> Calibration:
    """The calibration with the schedules that come nearest on these clips."""
    shown = []
    for number, clip in enumerate(clips if rehearsed_counts(config.steps, found, config.speedups) else [], start=1):
        console.say(f"[rehearsal {number}/{len(clips)}] {clip[0]}, seed {clip[1]}")
        shown.append(Shown(clip, sample(pipe, config, *clip, lambda step: None).frames))
    return rehearse(pipe, config, found, shown, config.speedups, console, moves=config.moves)


def unseen(clips: list[tuple[str, int]], seen: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Clips, those that were seen with later seeds: weights flatter schedules on the clips that they were fitted to."""
    taken, found = set(seen), []
    for prompt, asked in clips:
        seed = next(seed for seed in itertools.count(asked) if (prompt, seed) not in taken)
        taken.add((prompt, seed))
        found.append((prompt, seed))
    return found


def _measure(
    pipe: Pipeline, config: CalibrateConfig, clips: list[tuple[str, int]], command: str, console: Console
) -> Calibration:
    """All of a calibration: inner products, sensitivity, schedules."""
    kind, starts = run_kind(config), _starts(config)
    grams, finals, branches = _watch(pipe, config, clips, console)
    gram = apart(torch.stack(grams).mean(0), branches)
    mix = torch.stack([mixture(branches, scale) for scale in kind.scales])
    flat = torch.ones(config.steps, dtype=torch.float64)
    rehearsed = unseen(_some(clips, config.rehearsal_clips), clips)
    made = {**_made_from(config, clips, command), "rehearsed": rehearsed}
    about = {**asdict(kind), "name": config.model.name, "made": made}
    known = [Known(*parts) for parts in zip(clips, (apart(g, branches) for g in grams), finals, strict=True)]
    first = calibrate(branches, gram, mix, flat, about, starts)
    sensitivity = measure_sensitivity(pipe, config, first, _some(known, config.probe_clips), config.probes, console)
    found = calibrate(branches, gram, mix, sensitivity, about, starts)
    return _rehearse(pipe, config, found, rehearsed, console)


def _starts(config: CalibrateConfig) -> list[int]:
    """The first step of every transformer.

    Raises:
        ConfigError: if one of two experts has no step on which it could forecast.
    """
    parts = experts(config)
    if len(parts) > 1 and any(len(steps) < _LEAST_OF_EXPERT for steps in parts.values()):
        shares = ", ".join(f"{name} {len(steps)}" for name, steps in parts.items())
        raise ConfigError(
            f"steps={config.steps} and model.boundary={config.model.boundary} leave an expert next to nothing "
            f"({shares}); allowed: {_LEAST_OF_EXPERT} steps or more for each"
        )
    return expert_starts(config)


def _some(known: list[T], count: int) -> list[T]:
    """So many clips, spread over all of them."""
    return known[:: max(1, len(known) // count)][:count] if count else []


def _name(config: CalibrateConfig) -> str:
    kind = run_kind(config)
    shift = "" if kind.flow_shift is None else f"-shift{kind.flow_shift:g}"
    words = slug(f"{config.model.name}-{config.scheduler}{shift}-{kind.steps}-g{kind.guidance:g}".replace(".", "_"))
    digest = hashlib.sha256(str(kind).encode()).hexdigest()[:8]  # tunes share a name, and long names are cut
    return f"{words}-{digest}"


def _check_output(path: Path) -> None:
    """Better now than after the clips."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
    except OSError as error:
        raise ConfigError(
            f"output={str(path)!r} cannot be written ({error}); allowed: a file in a folder that can be written to"
        ) from error


def _made_from(config: CalibrateConfig, clips: list[tuple[str, int]], command: str) -> dict[str, Any]:
    keys = ("height", "width", "num_frames", "dtype", "tokens", "probes", "probe_clips", "speedups", "rehearsal_clips")
    facts = {key: getattr(config, key) for key in (*keys, "moves")}
    return {"command": command, "clips": clips, "versions": package_versions(), **facts}


def _watch(
    pipe: Pipeline, config: CalibrateConfig, clips: list[tuple[str, int]], console: Console
) -> tuple[list[Tensor], list[Tensor], tuple[str, ...]]:
    """Gram matrix and final latents of every clip, and the branches."""
    grams, finals, branches = [], [], ()
    for number, (prompt, seed) in enumerate(clips, start=1):
        console.say(f"[{number}/{len(clips)}] {prompt}, seed {seed}")
        recorder = Recorder(config.tokens)
        with ExitStack() as stack:
            for name, steps in experts(config).items():
                stack.enter_context(watched(getattr(pipe, name), recorder.see, steps.start))
            made = sample(pipe, config, prompt, seed, lambda step: None, decode=False)
        grams.append(recorder.gram(config.steps))
        finals.append(made.latents.cpu())
        branches = recorder.branches()
    return grams, finals, branches
