"""Configs of published checkpoints, as far as they could be read, with their sources."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


@dataclass(frozen=True)
class Component:
    """One config beside weights: the transformer's, or the scheduler's."""

    kind: str
    """Class name; empty where nothing was found."""
    config: dict[str, Any]
    source: tuple[str, ...]
    """Where it was read."""
    not_found: str = ""
    """What was looked for in vain."""
    doubt: str = ""
    """What speaks against it."""


@dataclass(frozen=True)
class Checkpoint:
    """What is known of the weights at a hub id."""

    hub: str
    transformer: Component
    scheduler: Component


def _flat(sources: Any) -> tuple[str, ...]:
    if isinstance(sources, list):
        return tuple(text for source in sources for text in _flat(source))
    return (str(sources),)


def _component(given: dict[str, Any]) -> Component:
    if "not_found" in given:
        return Component("", {}, (), given["not_found"])
    return Component(given["class"], given["config"], _flat(given["source"]), doubt=given.get("doubt", ""))


def _read() -> dict[str, Checkpoint]:
    made = {}
    for path in sorted((Path(__file__).parent / "published").glob("*.yaml")):
        for hub, given in OmegaConf.to_container(OmegaConf.load(path))["checkpoints"].items():
            assert hub not in made, hub
            made[hub] = Checkpoint(hub, _component(given["transformer"]), _component(given["scheduler"]))
    return made


CHECKPOINTS = _read()
"""By hub id."""
