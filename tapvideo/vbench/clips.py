"""Videos in a folder, and what each is of: its prompt and its seed."""

import json
import re
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from tapvideo.batch.items import read_index
from tapvideo.batch.naming import unescape
from tapvideo.batch.shard import file_digest
from tapvideo.checks import ConfigError
from tapvideo.video_read import VideoError, read_video

RUN_BASELINE = "run"
"""Value of `baseline` for the un-accelerated clips that lie in the run folder of the accelerated ones."""

_ALLOWED = "a folder of mp4s named PROMPT-0.mp4, PROMPT-1.mp4, ..., of a batch, or of a run of tapvideo-generate"
_NUMBERED = re.compile(r"(?P<prompt>.+)-(?P<seed>\d+)", re.DOTALL)
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Clip:
    """One video file."""

    path: Path
    prompt: str
    seed: int
    """What tells clips of one prompt apart: the seed, or the number in the name where no list has seeds."""
    sha256: str = field(default="", compare=False)

    @property
    def key(self) -> tuple[str, int]:
        """What the same clip of another folder is found by."""
        return self.prompt, self.seed


@dataclass(frozen=True, slots=True)
class Facts:
    """What a whole video is, or what is wrong with it."""

    frames: int = 0
    height: int = 0
    width: int = 0
    error: str | None = None


def read_clips(folder: str, *, key: str = "videos") -> list[Clip]:
    """The clips of a folder: of `launch/batch.py`, of `tapvideo-generate`, or named as VBench names them.

    Args:
        folder: the folder; for a batch its own, or the `videos` in it.
        key: the configuration key that it is the value of, for errors.

    Returns:
        The clips, ordered by prompt and seed.

    Raises:
        ConfigError: if there is no such folder, no video in it, a clip that its list names is missing, or two clips
            have one prompt and seed.
    """
    root = Path(folder).expanduser()
    source = f"{key}={folder!r}"
    if not folder or not root.is_dir():
        raise ConfigError(f"{source} is no folder; allowed: {_ALLOWED}")
    clips = _of_batch(root, source) or _of_run(root, source, baseline=False) or _by_name(root)
    if not clips:
        raise ConfigError(f"{source} has no video; allowed: {_ALLOWED}")
    return _checked(clips, source)


def read_baseline(videos: str, baseline: str) -> list[Clip]:
    """The clips to compare with: another folder's, or with `run` those that `compare=true` left beside the clips.

    Raises:
        ConfigError: as `read_clips`, and where a run has no un-accelerated clips.
    """
    if baseline != RUN_BASELINE:
        return read_clips(baseline, key="baseline")
    source = f"baseline={RUN_BASELINE}"
    clips = _of_run(Path(videos).expanduser(), source, baseline=True)
    if not clips:
        raise ConfigError(f"{source}: videos={videos!r} is no run of tapvideo-generate compare=true; allowed: a folder")
    return _checked(clips, source)


def check_pairs(videos: list[Clip], baseline: list[Clip]) -> None:
    """Refuse two sets of clips that are not of the same prompts and seeds.

    Raises:
        ConfigError: naming what is missing, and where.
    """
    ours, theirs = {clip.key for clip in videos}, {clip.key for clip in baseline}
    lacks = [("videos", sorted(theirs - ours)), ("baseline", sorted(ours - theirs))]
    said = [f"{name} lacks {len(keys)} clips ({_some(keys)})" for name, keys in lacks if keys]
    if said:
        raise ConfigError(f"{' and '.join(said)}; allowed: two folders with the same prompts and seeds")


def with_digests(clips: list[Clip]) -> list[Clip]:
    """The clips with the SHA-256 of their files.

    Raises:
        OSError: if one cannot be read.
    """
    return [replace(clip, sha256=file_digest(clip.path)) for clip in clips]


def read_facts(clip: Clip) -> Facts:
    """Decode a video once: a file that was cut would otherwise be scored on what is left of it."""
    try:
        frames, height, width, _ = read_video(clip.path).shape
    except VideoError as error:
        return Facts(error=str(error))
    return Facts(frames, height, width)


def _of_batch(root: Path, source: str) -> list[Clip]:
    """Clips that a batch's index lists; for the batch's own folder, or the folder of its videos."""
    for folder in (root, root.parent):
        index, videos = folder / "videos.jsonl", folder / "videos"
        if index.is_file() and root in (folder, videos):
            try:
                items = read_index(index)
            except (OSError, ValueError) as error:
                raise ConfigError(f"{source}: {index} cannot be read ({error}); allowed: a batch's index") from error
            return [Clip(videos / item.file, item.prompt, item.seed) for item in items]
    return []


def _of_run(root: Path, source: str, *, baseline: bool) -> list[Clip]:
    """Clips that `tapvideo-generate` recorded; none where the folder is not of a run, or has no baselines."""
    record = root / "run.json"
    if not record.is_file():
        return []
    try:
        found: list[dict[str, Any]] = json.loads(record.read_text(encoding="utf-8")).get("clips", [])
        chosen = [(clip, clip["comparison"]["baseline"] if baseline else clip["video"]) for clip in found]
        return [Clip(root / path, clip["prompt"], clip["seed"]) for clip, path in chosen]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if baseline and isinstance(error, TypeError):
            return []  # `comparison` is null where nothing was compared
        raise ConfigError(f"{source}: {record} is not the record of a run ({error!r}); allowed: {_ALLOWED}") from error


def _by_name(root: Path) -> list[Clip]:
    clips = []
    for path in sorted(root.glob("*.mp4")):
        if not path.name.startswith("."):
            numbered = _NUMBERED.fullmatch(path.stem)
            prompt, seed = (numbered["prompt"], int(numbered["seed"])) if numbered else (path.stem, 0)
            clips.append(Clip(path, unescape(prompt), seed))
    return clips


def _checked(clips: list[Clip], source: str) -> list[Clip]:
    missing = [clip.path.name for clip in clips if not clip.path.is_file()]
    if missing:
        names = ", ".join(missing[:_SHOWN])
        raise ConfigError(
            f"{source} lacks {len(missing)} of the {len(clips)} videos that it lists ({names}); finish it"
        )
    ordered = sorted(clips, key=lambda clip: clip.key)
    twice = [a.key for a, b in pairwise(ordered) if a.key == b.key]
    if twice:
        raise ConfigError(f"{source} has two clips of one prompt and seed ({_some(twice)}); allowed: each once")
    return ordered


def _some(keys: list[tuple[str, int]]) -> str:
    shown = [f"{prompt[:80]!r} {seed}" for prompt, seed in keys[:_SHOWN]]
    return ", ".join(shown) + (", ..." if len(keys) > _SHOWN else "")
