"""What a method is to the harness: settings with a knob, and a way to switch it on."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from tapvideo.compare.flops import FlopLedger
from tapvideo.config import GenerateConfig
from tapvideo.models import adapter_for
from tapvideo.models.base import EmbedsAlike, ProjectsText
from tapvideo.pipeline import Pipeline

Settings = dict[str, Any]
"""A method's own knobs: plain values, which shape its clips and are recorded with them."""


class NotPossible(RuntimeError):
    """A method that cannot run here; the message is for the reader."""


@dataclass(frozen=True, slots=True)
class Bench:
    """The pipeline under test and its un-accelerated configuration."""

    pipe: Pipeline
    config: GenerateConfig
    ledger: FlopLedger
    branches: int
    """Transformer calls per step: 2 with guidance, 1 without it or where one call has both branches."""

    @property
    def skip_cost(self) -> float:
        """Full passes that a call without any block takes."""
        return 1 - self.ledger.share(*adapter_for(self.pipe.transformer).block_lists)

    @property
    def forecast_cost(self) -> float:
        """Full passes that a forecast step of TAP takes: no text is projected, and branches share what is alike."""
        adapter, costs = adapter_for(self.pipe.transformer), self.ledger.costs
        unread = adapter.text_projection if isinstance(adapter, ProjectsText) else None
        alike = adapter.alike if isinstance(adapter, EmbedsAlike) and self.branches > 1 else ()
        # Of large latents the hook keeps nothing, and this is too low by a small part of a forecast step.
        shared = sum(cost for part, cost in costs.items() if part != unread and part.partition(".")[0] in alike)
        saved = costs.get(unread or "", 0.0) + shared * (1 - 1 / self.branches)
        return self.skip_cost - saved / self.ledger.per_call

    @property
    def head_cost(self) -> float:
        """Full passes that the projection to latents takes."""
        return self.ledger.share(adapter_for(self.pipe.transformer).head)


@dataclass(frozen=True, slots=True)
class Knob:
    """What is turned until a method lands on a budget."""

    name: str
    values: tuple[int, ...] = ()
    """The values of a whole-numbered knob, in order."""
    low: float = 0.0
    high: float = 0.0
    """The ends of a continuous one, searched on a logarithmic scale."""
    rising: bool = False
    """Whether full passes grow with the value."""


@dataclass(frozen=True, slots=True)
class Variant:
    """Settings with one free knob. A method may have several; the tuning prompts decide which one speaks for it."""

    settings: Settings
    knob: Knob
    predict: Callable[[Settings], float] | None = None
    """Full passes of settings where they are known without a run."""


@dataclass(frozen=True, slots=True)
class Method:
    """One row of the table."""

    key: str
    label: str
    variants: Callable[[Bench, float], list[Variant]]
    """Variants to tune for this number of full passes."""
    apply: Callable[[Bench, Settings], AbstractContextManager[GenerateConfig]]
    """Switches the method on for the length of a block, and says how to sample."""
    calibrate: Callable[[Bench, Callable[[], None]], Settings] | None = None
    """Settings that the method fits for itself, given a way to run the tuning clips un-accelerated."""
    note: str = ""
    """What a reader should know of it."""
    note_of_two_calls: str = ""
    """The same, where the pipeline calls its transformer for each branch of guidance."""

    def remark(self, branches: int) -> str:
        """What a reader should know of it in a comparison of a pipeline with so many calls a step."""
        return self.note_of_two_calls if branches > 1 and self.note_of_two_calls else self.note


@dataclass(frozen=True, slots=True)
class Tuned:
    """How a method runs at a budget."""

    settings: Settings = field(default_factory=dict[str, Any])
    full_passes: float | None = None
    """On the tuning prompts."""
    note: str = ""
    failed: bool = False
    """It cannot run; the note says why."""
