"""Configuration of the two stages, `eval/vbench.py` and `eval/scenes.py`."""

from dataclasses import dataclass, field

from tapvideo.checks import ConfigError, at_least, one_of
from tapvideo.vbench.dimensions import DIMENSIONS

PROTOCOLS = ("auto", "standard", "custom")
WEIGHTS = ("list", "check", "script")


@dataclass(kw_only=True)
class FoldersConfig:
    """Which videos, against which, and where the results go."""

    videos: str = ""
    """Folder of videos: of a batch, of a run of tapvideo-generate, or of mp4s named `PROMPT-0.mp4`."""
    baseline: str | None = None
    """Folder with the same prompts and seeds to compare with; `run`: what `compare=true` left in the run `videos`."""
    output_dir: str = "outputs"
    report: bool = True
    """Write report.html beside results.json and results.csv."""
    verbose: bool = True


@dataclass(kw_only=True)
class ScenesConfig(FoldersConfig):
    """Everything `eval/scenes.py` reads."""


@dataclass(kw_only=True)
class VBenchConfig(FoldersConfig):
    """Everything `eval/vbench.py` reads."""

    dimensions: list[str] = field(default_factory=list)
    """Which of VBench's dimensions; empty: all that the protocol has."""
    protocol: str = "auto"
    """`standard`: prompts of VBench's suite, each for the dimensions that it is meant for; `custom`: any prompts, every
    video for every dimension; `auto`: standard where all prompts are of the suite."""
    python: str | None = None
    """Interpreter of VBench's own environment; None: this one."""
    cache_dir: str | None = None
    """Where the weights are; None: $VBENCH_CACHE_DIR, or ~/.cache/vbench. Nothing is ever fetched into it."""
    device: str = "auto"
    """`auto` (cuda where VBench's environment has one), `cpu`, `cuda`, `cuda:1`, ..."""
    batch: int = 64
    """Videos that VBench gets at once: it loads its model anew for each batch, and scores are kept batch by batch."""
    shard: int = 0
    """Score every `shards`-th video from this one on, and write no results."""
    shards: int = 1
    collect: bool = False
    """Write the results from scores that are there; score nothing."""
    weights: str | None = None
    """`list` what the dimensions need, `check` it with SHA-256 too, or print the shell `script` that fetches what is
    missing; then stop."""

    def __post_init__(self) -> None:
        """Check every value that needs no folder."""
        one_of("protocol", self.protocol, PROTOCOLS)
        if self.weights is not None:
            one_of("weights", self.weights, WEIGHTS)
        for name in self.dimensions:
            one_of("dimensions", name, tuple(DIMENSIONS))
        if len(set(self.dimensions)) != len(self.dimensions):
            raise ConfigError(f"dimensions={self.dimensions!r} repeats one; allowed: each once")
        at_least("batch", self.batch, 1)
        at_least("shards", self.shards, 1)
        if not 0 <= self.shard < self.shards:
            allowed = f"0 to {self.shards - 1} (shards={self.shards})"
            raise ConfigError(f"shard={self.shard!r} is not one of the shards; allowed: {allowed}")
        if self.collect and self.shards > 1:
            raise ConfigError(f"collect=true is for all videos; allowed: shards=1, not {self.shards}")
