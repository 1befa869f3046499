"""The clips of a batch, in an order that every process agrees on."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tapvideo.batch.naming import file_stems
from tapvideo.checks import ConfigError

_PROMPT_KEYS = ("prompt", "prompt_en")
_ALLOWED = "a txt with one prompt a line, a jsonl of objects with `prompt`, or VBench's full-info json (`prompt_en`)"


@dataclass(frozen=True, slots=True)
class Item:
    """One clip."""

    file: str
    """Its name in the folder of videos."""
    prompt: str
    seed: int
    index: int
    """Which of the prompt's clips it is; what VBench counts from 0."""


def read_items(prompt_file: str | None, seeds: list[int], *, suffix: str = "mp4") -> list[Item]:
    """Every prompt with every seed, prompt by prompt; prompts that are there twice are taken once.

    Args:
        prompt_file: a list of prompts, by its suffix txt, jsonl or json.
        seeds: of prompts that name none of their own.
        suffix: of the files.

    Returns:
        The clips in the order of the file.

    Raises:
        ConfigError: if there is no such file, or a prompt in it cannot be used.
    """
    if prompt_file is None:
        raise ConfigError(f"prompts=null: a batch needs a list of prompts; allowed: {_ALLOWED}")
    path, source = Path(prompt_file).expanduser(), f"prompts={prompt_file!r}"
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = _rows(text, path.suffix.lower())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{source} cannot be read ({error}); allowed: {_ALLOWED}") from error
    found: dict[str, list[int]] = {}
    for number, row in rows:
        prompt, own = _prompt(row, f"{source}, {number}")
        found.setdefault(prompt, []).extend(s for s in own or seeds if s not in found.get(prompt, []))
    if not found:
        raise ConfigError(f"{source} has no prompt; allowed: {_ALLOWED}")
    stems = file_stems(found, num_indices=max(map(len, found.values())))
    return [
        Item(f"{stems[prompt]}-{index}.{suffix}", prompt, seed, index)
        for prompt, own in found.items()
        for index, seed in enumerate(own)
    ]


def index_text(items: list[Item]) -> str:
    """The index of a folder of videos: a line of json a clip, with its file, prompt, seed and index."""
    return "".join(json.dumps(asdict(item)) + "\n" for item in items)


def read_index(path: Path) -> list[Item]:
    """The clips that an index lists.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not an index.
    """
    try:
        return [Item(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except TypeError as error:
        raise ValueError(f"{path}: not an index of videos ({error})") from error


def _rows(text: str, suffix: str) -> list[tuple[str, Any]]:
    """What a list holds, each with the words that find it again."""
    if suffix == ".json":
        rows = json.loads(text)
        if not isinstance(rows, list):
            raise ValueError("not a list")
        return [(f"entry {number}", row) for number, row in enumerate(rows)]
    lines = [(f"line {number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if suffix == ".jsonl":
        return [(number, json.loads(line)) for number, line in lines]
    return [(number, line.strip()) for number, line in lines]


def _prompt(row: Any, where: str) -> tuple[str, list[int] | None]:
    """Prompt and seeds of one row; a text, or an object."""
    values = row if isinstance(row, dict) else {"prompt": row}
    prompt = next((values[key] for key in _PROMPT_KEYS if key in values), None)
    if not isinstance(prompt, str) or not prompt.strip():
        raise ConfigError(f"{where}: prompt={prompt!r} is no prompt; allowed: {_ALLOWED}")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{where}: prompt={prompt!r} is not valid Unicode; allowed: whole characters") from error
    seeds = values.get("seeds")
    good = isinstance(seeds, list) and seeds and all(type(s) is int and s >= 0 for s in seeds)
    if seeds is not None and (not good or len(set(seeds)) < len(seeds)):
        raise ConfigError(f"{where}: seeds={seeds!r} is not a list of seeds; allowed: different integers from 0")
    if "seed" in values:
        raise ConfigError(f"{where}: seed={values['seed']!r} is not read; allowed: seeds=[{values['seed']!r}]")
    return prompt, seeds
