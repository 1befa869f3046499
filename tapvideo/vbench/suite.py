"""VBench's protocol: which video is scored in which dimension, and what VBench is told of it."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tapvideo.checks import ConfigError
from tapvideo.vbench.clips import Clip
from tapvideo.vbench.dimensions import DIMENSIONS

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Suite:
    """What a set of videos is scored on."""

    protocol: str
    """`standard` or `custom`."""
    dimensions: list[str]
    rows: dict[str, dict[str, dict[str, Any] | None]] = field(default_factory=dict)
    """By prompt and dimension: what VBench is told besides the prompt. Empty for `custom`."""

    def of(self, dimension: str, clips: Iterable[Clip]) -> list[Clip]:
        """The videos that a dimension is measured on."""
        if self.protocol == "custom":
            return [] if DIMENSIONS[dimension].needs_suite else list(clips)
        return [clip for clip in clips if dimension in self.rows.get(clip.prompt, {})]

    def hints(self, dimension: str, clip: Clip) -> dict[str, Any] | None:
        """What VBench calls `auxiliary_info`."""
        return self.rows.get(clip.prompt, {}).get(dimension)

    def absent(self, dimension: str, clips: Iterable[Clip]) -> int:
        """Prompts that the suite has for a dimension and the videos lack."""
        there = {clip.prompt for clip in clips}
        return sum(dimension in row and prompt not in there for prompt, row in self.rows.items())


def read_suite(path: Path) -> dict[str, dict[str, dict[str, Any] | None]]:
    """VBench's own list of prompts, by prompt and dimension; a prompt that it lists twice is one."""
    rows: dict[str, dict[str, dict[str, Any] | None]] = {}
    for entry in json.loads(path.read_text(encoding="utf-8")):
        row = rows.setdefault(entry["prompt_en"], {})
        for dimension in entry["dimension"]:
            row[dimension] = entry.get("auxiliary_info")
    return rows


def choose(
    protocol: str, dimensions: list[str], rows: dict[str, dict[str, dict[str, Any] | None]], clips: list[Clip]
) -> Suite:
    """What to score the videos on.

    Args:
        protocol: `auto`, `standard` or `custom`.
        dimensions: the dimensions that are asked for; empty for all.
        rows: VBench's prompts.
        clips: the videos.

    Raises:
        ConfigError: if a dimension or the protocol does not go with the videos' prompts.
    """
    strange = sorted({clip.prompt for clip in clips if clip.prompt not in rows})
    if protocol == "standard" and strange:
        some = ", ".join(repr(prompt[:80]) for prompt in strange[:_SHOWN])
        raise ConfigError(f"protocol='standard': {len(strange)} prompts are not VBench's ({some}); allowed: custom")
    if protocol == "custom" or strange:
        allowed = [name for name, dimension in DIMENSIONS.items() if not dimension.needs_suite]
        refused = [name for name in dimensions if name not in allowed]
        if refused:
            why = f"for prompts of your own, e.g. {strange[0][:80]!r}" if strange else "with protocol=custom"
            raise ConfigError(f"dimensions={refused} cannot be judged {why}; allowed: {', '.join(allowed)}")
        return Suite("custom", dimensions or allowed)
    suite = Suite("standard", dimensions or list(DIMENSIONS), rows)
    empty = [name for name in suite.dimensions if not suite.of(name, clips)]
    if empty and dimensions:
        raise ConfigError(
            f"dimensions={empty}: no video has a prompt that VBench means for them; protocol=custom takes any"
        )
    return Suite("standard", [name for name in suite.dimensions if name not in empty], rows)
