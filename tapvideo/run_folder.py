"""Names of the files of a run: from the config alone, so that all ranks agree and a run can be found again."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tapvideo.config import ConfigError, GenerateConfig
from tapvideo.images import digests
from tapvideo.lora import lora_digests

_SLUG_LENGTH = 48
# Prompts count by their text, pictures by their bytes, and ranks make the same video, however many they are.
_NOT_IN_THE_NAME = ("output_dir", "verbose", "dry_run", "prompt", "prompt_file", "parallel")


@dataclass(frozen=True, slots=True)
class Job:
    """One clip to make."""

    prompt: str
    seed: int
    name: str
    """Folder of the clip, inside the run's."""


def read_prompts(config: GenerateConfig) -> list[str]:
    """The prompts of a run: the lines of `prompt_file`, or `prompt`.

    Raises:
        ConfigError: if there is none, or the file cannot be read.
    """
    if config.prompt_file is None:
        prompts, source = [config.prompt.strip()], f"prompt={config.prompt!r}"
    else:
        source = f"prompt_file={config.prompt_file!r}"
        try:
            prompts = Path(config.prompt_file).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{source} cannot be read ({error}); allowed: a UTF-8 text with one prompt a line"
            ) from error
    found = [p.strip() for p in prompts if p.strip()]
    if not found:
        raise ConfigError(f"{source} has no prompt; allowed: prompt='...' or a prompt_file with one prompt a line")
    return found


def shape(config: GenerateConfig) -> dict[str, Any]:
    """A config as plain values, with the contents of pictures, LoRA and calibration in the place of their paths.

    Raises:
        ConfigError: if one cannot be read.
    """
    plain = config.as_dict()
    if config.tap_config.needs_calibration and not config.tap_config.awaits_calibration:
        path = Path(config.tap.calibration)
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        except OSError as error:
            raise ConfigError(
                f"tap.calibration={str(path)!r} cannot be read ({error}); allowed: a file that tapvideo-calibrate wrote"
            ) from error
        plain["tap"] = {**plain["tap"], "calibration": found}
    if config.lora is None:
        plain.pop("lora_scale")  # of nothing
    return {**plain, **digests(config), **lora_digests(config)}


def run_folder(config: GenerateConfig, prompts: list[str]) -> Path:
    """`output_dir/MODEL-TAP-HASH`; the hash is of everything that shapes the videos or their record."""
    plain = {key: value for key, value in shape(config).items() if key not in _NOT_IN_THE_NAME}
    text = json.dumps({**plain, "prompts": prompts}, sort_keys=True, ensure_ascii=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return Path(config.output_dir).expanduser() / f"{slug(config.model.name)}-{slug(config.tap.name)}-{digest}"


def make_folder(folder: Path) -> None:
    """Make a run's folder.

    Raises:
        ConfigError: if it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"output_dir={str(folder.parent)!r} cannot be made ({error.strerror}); allowed: a folder to write to"
        ) from error


@contextmanager
def kept_if_used(folder: Path) -> Iterator[None]:
    """A folder that was made in good time; if the block fails before there is anything in it, it goes again."""
    try:
        yield
    except BaseException:
        with suppress(OSError):  # not empty: from an earlier run
            folder.rmdir()
        raise


def list_jobs(config: GenerateConfig, prompts: list[str]) -> list[Job]:
    """Every prompt with every seed, in order."""
    return [
        Job(prompt, seed, f"{index:03d}-{slug(prompt)}-seed{seed}")
        for index, prompt in enumerate(prompts)
        for seed in config.seeds
    ]


def slug(text: str) -> str:
    """Lower-case ASCII letters, digits and dashes: a text that is safe as a part of a path."""
    return re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-")[:_SLUG_LENGTH].strip("-") or "x"
