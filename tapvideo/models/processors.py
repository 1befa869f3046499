"""Attention processors that are put in the place of a model's own."""

from typing import Any

from tapvideo.models.base import ModelAdapter
from tapvideo.parallel.attention import SequenceAttention


class Processors:
    """The self-attention processors of a transformer, and their stand-ins."""

    def __init__(self, layers: list[Any], adapter: ModelAdapter, attention: SequenceAttention) -> None:
        self.layers = layers
        self.adapter = adapter
        self.attention = attention
        self._originals: list[Any] = []

    def install(self) -> None:
        """Put the stand-ins in.

        Raises:
            ValueError: if there are processors that nothing can stand in for.
        """
        originals = [layer.processor for layer in self.layers]
        stand_ins = [self.adapter.processor(p, i, self.attention) for i, p in enumerate(originals)]
        self._set(stand_ins)
        self._originals = originals

    def restore(self) -> None:
        """Put back what was there."""
        self._set(self._originals)
        self._originals = []

    def _set(self, processors: list[Any]) -> None:
        for layer, processor in zip(self.layers, processors, strict=bool(processors)):
            layer.set_processor(processor)
