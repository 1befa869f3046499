"""What a batch is made of, and what must not change while it is made."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tapvideo.batch.items import Item
from tapvideo.checks import ConfigError, at_least
from tapvideo.config import GenerateConfig
from tapvideo.run_folder import shape, slug

# What shapes no clip: a run goes on with other values of these.
_FREE = ("output_dir", "verbose", "dry_run", "prompt", "prompt_file", "parallel", "compare")
_FREE += ("shard", "shards", "name", "stop_file", "give_up")


@dataclass(kw_only=True)
class BatchConfig(GenerateConfig):
    """Everything `launch/batch.py` reads: what `launch/generate.py` does but for `prompt`, and the keys below.

    `prompt_file` may also be jsonl (objects with `prompt` and, if they like, `seeds`), or VBench's full-info json.
    """

    shard: int = 0
    """Which shard this process makes: every `shards`-th clip from this one on."""
    shards: int = 1
    """How many there are. Always given, never counted: an array of which two tasks are resubmitted has two tasks."""
    name: str | None = None
    """Folder in `output_dir`; by default MODEL-TAP-batch-HASH, of everything that shapes the clips."""
    stop_file: str | None = None
    """The shard stops before its next clip once this file is there; so it does for STOP in the run's folder."""
    give_up: int = 5
    """Failures in a row after which a shard stops: then it is not the prompts."""

    def __post_init__(self) -> None:
        """Check every value that does not depend on the model or on files."""
        super().__post_init__()
        at_least("shards", self.shards, 1)
        at_least("give_up", self.give_up, 1)
        if not 0 <= self.shard < self.shards:
            allowed = f"0 to {self.shards - 1} (shards={self.shards})"
            raise ConfigError(f"shard={self.shard!r} is not one of the shards; allowed: {allowed}")
        if self.prompt:
            raise ConfigError(f"prompt={self.prompt!r} is for one clip; allowed here: prompts=FILE")
        if self.compare:
            raise ConfigError("compare=True is not for batches; allowed: False, and another batch with tap=off")
        if self.name is not None and (slug(self.name) != self.name.lower() or self.name != self.name.strip()):
            raise ConfigError(f"name={self.name!r} is no name of a folder; allowed: up to 48 letters, digits, - and _")


def clip_facts(config: BatchConfig, items: list[Item]) -> dict[str, Any]:
    """All that shapes the clips of a batch, by key, as plain values."""
    plain = {key: value for key, value in shape(config).items() if key not in _FREE}
    lines = [[item.prompt, item.seed, item.file] for item in items]
    return {**plain, "prompts": hashlib.sha256(json.dumps(lines).encode()).hexdigest()[:16]}


def run_path(config: BatchConfig, items: list[Item]) -> Path:
    """The folder of a batch, from its config alone."""
    text = json.dumps(clip_facts(config, items), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    name = config.name or f"{slug(config.model.name)}-{slug(config.tap.name)}-batch-{digest}"
    return Path(config.output_dir).expanduser() / name


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Keys that two sets of facts do not agree on, with both values, as `key=ours (there: theirs)`."""
    ours, theirs = _flat(ours), _flat(theirs)
    return [
        f"{key}={ours.get(key)!r} (there: {theirs.get(key)!r})"
        for key in sorted({*ours, *theirs})
        if ours.get(key) != theirs.get(key)
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
