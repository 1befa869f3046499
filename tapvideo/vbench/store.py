"""Scores on disk, one line of JSON a video, kept by what was measured of which bytes, whatever folder they lie in."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tapvideo.vbench.clips import Clip, Facts


@dataclass(frozen=True, slots=True)
class Scored:
    """What VBench made of one video."""

    score: float | None
    """None where there is an error, or VBench leaves the video out."""
    error: str | None


class ScoreStore:
    """A folder of JSONL files; each has one writer, and all are read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def file(self, dimension: str, job: str) -> Path:
        """Where one job writes a dimension's scores; the folder is made."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"{dimension}-{job}.jsonl"

    def scores(self, version: str, dimension: str) -> dict[tuple[str, str], Scored]:
        """By SHA-256 and prompt; a score that was found later takes the place of an error."""
        found: dict[tuple[str, str], Scored] = {}
        for line in self._lines(f"{dimension}-*.jsonl"):
            if line.get("vbench") == version and line.get("dimension") == dimension and "sha256" in line:
                key = (line["sha256"], line["prompt"])
                if key not in found or found[key].error is not None:
                    found[key] = Scored(line["score"], line["error"])
        return found

    def facts(self) -> dict[str, Facts]:
        """What is known of whole videos, by SHA-256."""
        return {line.pop("sha256"): Facts(**line) for line in self._lines("facts-*.jsonl") if "sha256" in line}

    def add_facts(self, job: str, found: Iterable[tuple[Clip, Facts]]) -> None:
        """Note what decoding told."""
        lines = [json.dumps({"sha256": clip.sha256, **asdict(facts)}) + "\n" for clip, facts in found]
        if lines:
            with self.file("facts", job).open("ab") as out:
                out.write("".join(["\n", *lines]).encode())  # after a line that a crash may have torn
                out.flush()
                os.fsync(out.fileno())

    def _lines(self, pattern: str) -> Iterable[dict[str, Any]]:
        for path in sorted(self.folder.glob(pattern)):
            for text in path.read_bytes().split(b"\n"):
                try:
                    line = json.loads(text)
                except ValueError:  # torn, or empty
                    continue
                if isinstance(line, dict):
                    yield line
