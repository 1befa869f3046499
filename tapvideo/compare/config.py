"""What a comparison is made of: methods x budgets x prompts x seeds, and how each clip is made."""

import hashlib
import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from tapvideo.checks import check_seeds, one_of
from tapvideo.config import (
    ConfigError,
    ForecastConfig,
    GenerateConfig,
    ModelConfig,
    RecomputeConfig,
    as_dict,
    config_dir,
)
from tapvideo.metrics import METRICS
from tapvideo.run_folder import slug
from tapvideo.tap_config import BY_SPEEDUP

_NOT_IN_THE_NAME = ("output_dir", "verbose")


def default_presets() -> dict[str, ForecastConfig]:
    """TAP's presets as conf/tap/*.yaml has them (a test holds the two together)."""
    return {
        "paper": ForecastConfig(name="paper"),
        "reuse": _reuse(),
        "taylor1": ForecastConfig(name="taylor1", orders=[1], lookback=0.0, anchors=2),
        "taylor2": ForecastConfig(name="taylor2", orders=[2], lookback=0.0),
        "lagrange2": ForecastConfig(name="lagrange2", family="lagrange", orders=[2], lookback=0.0),
        "recompute": ForecastConfig(name="recompute", recompute=RecomputeConfig(budget=0.1)),
        "recompute5": ForecastConfig(name="recompute5", recompute=RecomputeConfig(budget=0.05)),
        "default": ForecastConfig(name="default", blend=0.5, guard=True),
        "unguarded": ForecastConfig(name="unguarded", blend=0.5),
        "calibrated": ForecastConfig(name="calibrated", family="calibrated"),
        "calibrated-interval": ForecastConfig(name="calibrated-interval", family="calibrated"),
        "paper-spread": ForecastConfig(name="paper-spread"),
        "paper-calibrated": ForecastConfig(name="paper-calibrated"),
        "reuse-calibrated": replace(_reuse(), name="reuse-calibrated"),
    }


def default_schedules() -> dict[str, str]:
    """Schedules of presets that are not on the interval, as conf/compare.yaml has them."""
    calibrated = dict.fromkeys(
        ("default", "unguarded", "calibrated", "paper-calibrated", "reuse-calibrated"), "calibrated"
    )
    return {**calibrated, "paper-spread": "spread"}


def _reuse() -> ForecastConfig:
    return ForecastConfig(name="reuse", family="reuse", orders=[0], lookback=0.0, anchors=1)


@dataclass(kw_only=True)
class CompareConfig:
    """Everything `eval/compare.py` reads."""

    name: str = "quick"
    """What the output folder calls this comparison."""
    model: ModelConfig = field(default_factory=ModelConfig)
    presets: dict[str, ForecastConfig] = field(default_factory=default_presets)
    """Forecasts of ours to compare, by name; each is the method `tap-NAME`."""
    schedules: dict[str, str] = field(default_factory=default_schedules)
    """Where their full steps go, by name: `spread` or `calibrated`; `interval` for those that are not named."""
    methods: list[str] = field(default_factory=list[str])
    """Keys of methods; empty for all but the oracles, which know the truth."""
    budgets: list[float] = field(default_factory=lambda: [3.5])
    """Steps over full-pass equivalents that every method is set to."""
    tolerance: float = 0.05
    """How far from a budget's full passes a method may land, as a share, and still count as at equal compute."""
    tuning_prompts: str = "compare_tuning"
    """Text file with one prompt a line, or the name of one in conf/prompt_lists: for knobs, never for results."""
    num_tuning_prompts: int = 1
    tuning_seeds: list[int] = field(default_factory=lambda: [7001])
    prompts: str = "compare_reporting"
    """As `tuning_prompts`, for results."""
    num_prompts: int = 2
    seeds: list[int] = field(default_factory=lambda: [1])
    draws: int = 1
    """How often every clip is made: from its seed's noise, and then from that noise, nudged each time otherwise."""
    nudge: float = 1e-3
    """How far, as a share of the noise's standard deviation: what it overturns was chance. bfloat16 rounds by more."""
    other_seed: int = 9000
    """Added to a seed for the row that compares with another seed's clip."""
    ode_steps: int = 100
    """Steps of the model's own scheduler that stand for the ODE's solution."""
    metrics: list[str] = field(default_factory=lambda: ["psnr", "ssim"])
    diagnostics: bool = True
    """Measure per step how good TAP's choice is."""

    negative_prompt: str = ""
    image: str | None = None
    last_image: str | None = None
    steps: int = 50
    height: int = 64
    width: int = 64
    num_frames: int = 17
    guidance: float = 6.0
    fps: int = 8
    quality: int = 16
    scheduler: str = "unipc"
    flow_shift: float = 3.0
    max_sequence_length: int = 64
    device: str = "auto"
    dtype: str = "float32"
    vae_tiling: bool = False
    output_dir: str = "outputs"
    verbose: bool = True

    def __post_init__(self) -> None:
        """Check every value that does not depend on the model or on files."""
        self.base()  # checks what the two configs share
        for key in ("num_prompts", "num_tuning_prompts", "other_seed", "ode_steps", "draws"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key}={getattr(self, key)!r} is too small; allowed: 1 or more")
        most = self.steps / 2
        if not self.budgets or not all(1 < budget <= most for budget in self.budgets):
            raise ConfigError(f"budgets={self.budgets!r} is not possible; allowed: numbers above 1, up to {most:g}")
        if not 0 < self.nudge <= 1:
            raise ConfigError(f"nudge={self.nudge!r} nudges no noise; allowed: above 0, up to 1")
        if not 0 < self.tolerance < 1:
            raise ConfigError(f"tolerance={self.tolerance!r} is no share; allowed: between 0 and 1")
        unknown = [name for name in self.metrics if name not in METRICS]
        if unknown:
            raise ConfigError(f"metrics={self.metrics!r} names {unknown[0]!r}; allowed: {', '.join(METRICS)}")
        if "psnr" not in self.metrics:
            raise ConfigError(f"metrics={self.metrics!r} lacks psnr, by which methods are tuned and sorted")
        self.presets = {name: replace(preset, name=name) for name, preset in self.presets.items()}  # or two share a key
        self._check_schedules()
        self._check_seeds()

    def _check_schedules(self) -> None:
        for name, schedule in self.schedules.items():
            if name not in self.presets:
                raise ConfigError(f"schedules.{name}={schedule!r} is of no preset; allowed: {', '.join(self.presets)}")
            one_of(f"schedules.{name}", schedule, ("interval", *BY_SPEEDUP))

    def _check_seeds(self) -> None:
        for key, seeds in (("seeds", self.seeds), ("tuning_seeds", self.tuning_seeds)):
            check_seeds(key, seeds)
        reported = {*self.seeds, *(seed + self.other_seed for seed in self.seeds)}
        shared = sorted(reported & set(self.tuning_seeds))
        if shared:
            raise ConfigError(
                f"tuning_seeds={self.tuning_seeds!r} shares {shared} with seeds or seeds + other_seed; allowed: others"
            )

    def base(self) -> GenerateConfig:
        """One un-accelerated clip, as the command line that generates would make it."""
        shared = {f.name for f in fields(GenerateConfig)} & {f.name for f in fields(self)}
        return GenerateConfig(**{name: getattr(self, name) for name in shared - {"seeds"}})

    def target(self, budget: float) -> float:
        """Full passes per branch at a budget."""
        return self.steps / budget


def read_list(key: str, name: str, count: int) -> list[str]:
    """The first `count` lines of a file of prompts, given by path or by its name in conf/prompt_lists.

    Raises:
        ConfigError: if there is no such file, or it has fewer prompts.
    """
    path = Path(name).expanduser()
    if not path.is_file() and slug(name) == name:
        path = config_dir() / "prompt_lists" / f"{name}.txt"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(sorted(p.stem for p in (config_dir() / "prompt_lists").glob("*.txt")))
        raise ConfigError(f"{key}={name!r} cannot be read ({error}); allowed: a UTF-8 text file, or {known}") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if len(prompts) < count:
        raise ConfigError(f"{key}={name!r} has {len(prompts)} prompts; num_{key}={count} asks for more")
    return prompts[:count]


def read_sets(config: CompareConfig) -> tuple[list[str], list[str]]:
    """The prompts to tune on and the prompts to report.

    Raises:
        ConfigError: if a file is not there, too short, or the two sets share a prompt.
    """
    tuning = read_list("tuning_prompts", config.tuning_prompts, config.num_tuning_prompts)
    reporting = read_list("prompts", config.prompts, config.num_prompts)
    shared = sorted(set(tuning) & set(reporting))
    if shared:
        raise ConfigError(f"tuning_prompts and prompts share {shared[0]!r}; allowed: sets with nothing in common")
    return tuning, reporting


def compare_folder(config: CompareConfig, prompts: list[str]) -> Path:
    """`output_dir/compare-MODEL-NAME-HASH`; the hash is of everything but where it lies and what it says."""
    unsaid = _NOT_IN_THE_NAME if config.draws > 1 else (*_NOT_IN_THE_NAME, "draws", "nudge")
    plain = {key: value for key, value in as_dict(config).items() if key not in unsaid}
    text = json.dumps({**plain, "prompts": prompts}, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return Path(config.output_dir).expanduser() / f"compare-{slug(config.model.name)}-{slug(config.name)}-{digest}"
