"""Comparison of acceleration methods at equal compute: methods x budgets x prompts x seeds."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tapvideo.compare.config import CompareConfig


def run(config: "CompareConfig", *, command: str = "") -> Path:
    """Compare methods and return the folder of the results; see `tapvideo.compare.runner.run`."""
    from tapvideo.compare import runner  # here: the report reads `compare.results`, and the runner writes the report

    return runner.run(config, command=command)
