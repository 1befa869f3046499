"""Typed configuration, for Python and for Hydra; the only module that knows `DictConfig`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tapvideo.checks import ConfigError as ConfigError
from tapvideo.checks import at_least, one_of, positive
from tapvideo.parallel.attention import EXCHANGES
from tapvideo.parallel.config import ParallelConfig
from tapvideo.parallel.kept import KV_DTYPES

FAMILIES = ("taylor", "lagrange", "reuse")
PROXIES = ("cosine", "l2")
CHOICES = ("token", "sample")
PROBES = ("modulated", "block_output", "block_residual")
COORDINATES = ("step", "sigma")
SCHEDULES = ("interval", "explicit")
DTYPES = ("float32", "bfloat16", "float16")
SCHEDULERS = ("unipc", "euler")
OFFLOADS = ("none", "model", "group")


Config = TypeVar("Config")

_MOST_CANDIDATES = 127  # choices are kept in one signed byte per token


@dataclass(kw_only=True)
class ScheduleConfig:
    """Which denoising steps are full."""

    kind: str = "interval"
    """`interval`: the first `warmup`, then every `interval`-th, and the `last` steps. `explicit`: those in `steps`."""
    interval: int = 4
    """Distance between full steps after the warm-up; 1 makes every step full."""
    warmup: int = 3
    """Full steps at the start, of every branch and of every expert."""
    last: int = 1
    """Full steps at the end."""
    steps: list[int] = field(default_factory=list)
    """Full steps of the explicit schedule, counted from 0; step 0 always is one."""
    min_steps: int = 12
    """Runs of fewer steps than this are not accelerated: few-step models have nothing to skip."""

    def __post_init__(self) -> None:
        """Check every value."""
        one_of("schedule.kind", self.kind, SCHEDULES)
        at_least("schedule.interval", self.interval, 1)
        at_least("schedule.warmup", self.warmup, 1)
        at_least("schedule.last", self.last, 0)
        at_least("schedule.min_steps", self.min_steps, 0)
        if self.kind == "explicit" and not self.steps:
            raise ConfigError(
                "schedule.steps=[] is empty; schedule.kind=explicit needs the list of full steps, e.g. [0,1,2,6,10]"
            )
        if any(s < 0 for s in self.steps):
            raise ConfigError(f"schedule.steps={self.steps!r} has a negative step; allowed: 0 or more")


@dataclass(kw_only=True)
class RecomputeConfig:
    """Tokens that are forecast so badly that they run through the blocks on a forecast step after all."""

    budget: float = 0.0
    """Share of all tokens that may be recomputed on a forecast step, the worst first; 0 is off."""
    threshold: float = 0.0
    """Proxy error from which a token is stale; 0 spends the whole budget on every forecast step."""
    exchange: str = "auto"
    """What ranks tell each other: `ulysses` (fewest bytes), `allgather_q`, `allgather_kv`; `auto`: the first it can."""
    kv_dtype: str = "model"
    """Of the keys and values that layers keep: `model`, or `fp8` (e4m3 with a scale per token and head)."""
    kv_layers: list[int] = field(default_factory=list)
    """Layers that keep them; empty is all. In the others recomputed tokens attend to each other alone."""
    kv_offload: bool = False
    """Keep them on the CPU."""

    def __post_init__(self) -> None:
        """Check every value."""
        at_least("tap.recompute.budget", self.budget, 0)
        at_least("tap.recompute.threshold", self.threshold, 0)
        if self.budget > 1:
            raise ConfigError(f"tap.recompute.budget={self.budget!r} is a share of tokens; allowed: 0 (off) to 1")
        one_of("tap.recompute.exchange", self.exchange, ("auto", *EXCHANGES))
        one_of("tap.recompute.kv_dtype", self.kv_dtype, KV_DTYPES)
        if any(layer < 0 for layer in self.kv_layers):
            raise ConfigError(f"tap.recompute.kv_layers={self.kv_layers!r} has a negative layer; allowed: 0 or more")


@dataclass(kw_only=True)
class ForecastConfig:
    """How the block stack's output is forecast on the steps between."""

    name: str = "paper"
    """What reports call this method."""
    enabled: bool = True
    """False is plain diffusers."""
    family: str = "taylor"
    """Candidate predictors: `taylor` (the paper's), `lagrange` (exact on uneven anchors), `reuse` (order 0)."""
    orders: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Orders in the family."""
    lookback: float = 4.0
    """Candidates forecast to distances k - lookback .. k steps from the last full step (the paper's lambda)."""
    spacing: float = 1.0
    """Spacing of those distances in steps (the paper's delta)."""
    anchors: int = 3
    """Full steps that are remembered; at least the highest order + 1."""
    proxy: str = "cosine"
    """Distance on the probe: `cosine` (the paper's) or `l2`."""
    choice: str = "token"
    """One predictor per `token` (the paper's) or per `sample`."""
    probe: str = "modulated"
    """`modulated` input of block 0 (the paper's, runs none), output or residual of the first `probe_depth` blocks."""
    probe_depth: int = 1
    """Blocks that run on every step for the block probes."""
    coordinate: str = "step"
    """Time axis of the anchors: `step` index (the paper's) or `sigma`."""
    recompute: RecomputeConfig = field(default_factory=RecomputeConfig)
    """Tokens to run through the blocks on forecast steps."""
    maps: bool = True
    """Keep the chosen predictor of every token for the report (one byte per token and forecast step)."""

    def __post_init__(self) -> None:
        """Check every value."""
        one_of("tap.family", self.family, FAMILIES)
        one_of("tap.proxy", self.proxy, PROXIES)
        one_of("tap.choice", self.choice, CHOICES)
        one_of("tap.probe", self.probe, PROBES)
        one_of("tap.coordinate", self.coordinate, COORDINATES)
        at_least("tap.lookback", self.lookback, 0)
        at_least("tap.anchors", self.anchors, 1)
        at_least("tap.probe_depth", self.probe_depth, 1)
        positive("tap.spacing", self.spacing)
        if not self.orders or any(o < 0 for o in self.orders):
            raise ConfigError(
                f"tap.orders={self.orders!r} is not a list of orders; allowed: one or more integers from 0"
            )
        needed = max(self.orders) + 1
        if self.anchors < needed:
            raise ConfigError(
                f"tap.orders={self.orders!r} needs {needed} anchors; tap.anchors={self.anchors} is too small"
            )
        candidates = len(self.orders) * (int(self.lookback / self.spacing) + 1)
        if candidates > _MOST_CANDIDATES:
            asked = f"tap.lookback={self.lookback!r} and tap.spacing={self.spacing!r} make {candidates} candidates"
            raise ConfigError(f"{asked}; allowed: up to {_MOST_CANDIDATES}")


@dataclass(kw_only=True)
class TapConfig(ForecastConfig):
    """Everything `enable_tap` needs; by default the paper's method with three warm-up steps and an exact last one."""

    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Which steps are full."""

    @property
    def needs_probe(self) -> bool:
        """Whether there is something to choose, or to find stale: with one candidate no probe is computed or kept."""
        one_order = len(self.orders) == 1 and self.lookback < self.spacing
        chooses = self.family != "reuse" and max(self.orders) > 0 and not one_order
        return chooses or self.recompute.budget > 0


@dataclass(kw_only=True)
class ModelConfig:
    """A pipeline on disk or on the hub, and the defaults its model card gives."""

    name: str = "wan_tiny"
    weights: str = "builtin:wan_tiny"
    """Hub id, a local folder, or `builtin:NAME` for a model that ships with tapvideo."""
    revision: str | None = None
    height: int = 64
    width: int = 64
    num_frames: int = 17
    steps: int = 50
    guidance: float = 6.0
    fps: int = 8
    scheduler: str = "unipc"
    flow_shift: float = 3.0
    max_sequence_length: int = 64
    dtype: str = "float32"
    prompt: str = ""
    negative_prompt: str = ""
    compare: bool = False
    download_gib: float = 0.0
    """Size of the download, for the message that says what is missing."""


@dataclass(kw_only=True)
class GenerateConfig:
    """Everything `launch/generate.py` reads."""

    model: ModelConfig = field(default_factory=ModelConfig)
    tap: ForecastConfig = field(default_factory=ForecastConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    prompt: str = ""
    prompt_file: str | None = None
    """Text file with one prompt a line; replaces `prompt`."""
    negative_prompt: str = ""
    seeds: list[int] = field(default_factory=lambda: [0])
    steps: int = 50
    height: int = 64
    width: int = 64
    num_frames: int = 17
    guidance: float = 6.0
    fps: int = 8
    quality: int = 16
    """x264 constant rate factor: 0 is lossless in the codec's colour space, 16 visually so, 51 the worst."""
    scheduler: str = "unipc"
    flow_shift: float = 3.0
    max_sequence_length: int = 64
    device: str = "auto"
    """`auto` (cuda where there is one), `cpu`, `cuda`, `cuda:1`, ..."""
    dtype: str = "float32"
    offload: str = "none"
    compile: bool = False
    vae_tiling: bool = False
    compare: bool = False
    """Make every clip without acceleration too, with the same seed, and report PSNR, SSIM and speedup."""
    output_dir: str = "outputs"
    dry_run: bool = False
    """Print the plan of full and forecast steps and stop before any weight is loaded."""
    verbose: bool = True

    def __post_init__(self) -> None:
        """Check every value that does not depend on the model."""
        one_of("scheduler", self.scheduler, SCHEDULERS)
        one_of("dtype", self.dtype, DTYPES)
        one_of("offload", self.offload, OFFLOADS)
        for key in ("steps", "height", "width", "num_frames", "fps", "max_sequence_length"):
            at_least(key, getattr(self, key), 1)
        at_least("guidance", self.guidance, 0)
        if not 0 <= self.quality <= 51:
            raise ConfigError(f"quality={self.quality!r} is no x264 rate factor; allowed: 0 (best) to 51")
        positive("flow_shift", self.flow_shift)
        if not self.seeds or any(s < 0 for s in self.seeds):
            raise ConfigError(f"seeds={self.seeds!r} is not a list of seeds; allowed: one or more integers from 0")
        if len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds={self.seeds!r} repeats a seed; allowed: each once")

    @property
    def tap_config(self) -> TapConfig:
        """The forecast and the schedule as one, for `enable_tap`."""
        values = {name: getattr(self.tap, name) for name in ForecastConfig.__dataclass_fields__}
        return TapConfig(schedule=self.schedule, **values)

    @classmethod
    def from_hydra(cls, raw: DictConfig) -> "GenerateConfig":
        """Validate a composed config.

        Raises:
            ConfigError: for an unknown key (also one added with `+`), a wrong type or a value that is not allowed.
        """
        return from_hydra(cls, raw)

    def as_dict(self) -> dict[str, Any]:
        """The resolved configuration as plain values, for run records."""
        return as_dict(self)


def from_hydra(schema: type[Config], raw: DictConfig) -> Config:
    """A composed config as the dataclass `schema`, its checks included.

    Raises:
        ConfigError: for an unknown key (also one added with `+`), a wrong type or a value that is not allowed.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), raw)
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(_readable(error)) from error
    assert isinstance(config, schema)
    return config


def as_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as plain values."""
    plain = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items()}


def _readable(error: OmegaConfBaseException) -> str:
    first_line = str(error.msg or error).splitlines()[0]
    key = error.full_key or error.key
    return f"{key}: {first_line}" if key else first_line


def config_dir() -> Path:
    """The folder of Hydra's yaml files: inside the installed package, or beside it in a clone."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "conf"
