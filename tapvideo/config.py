"""Typed configuration, for Python and for Hydra; all that reads a `DictConfig`, commands just hand theirs on."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tapvideo.checks import ConfigError as ConfigError
from tapvideo.checks import at_least, check_seeds, one_of, positive
from tapvideo.parallel.config import ParallelConfig
from tapvideo.pipeline_kinds import KINDS, PipelineKind
from tapvideo.tap_config import ForecastConfig as ForecastConfig
from tapvideo.tap_config import RecomputeConfig as RecomputeConfig
from tapvideo.tap_config import ScheduleConfig as ScheduleConfig
from tapvideo.tap_config import TapConfig as TapConfig

DTYPES = ("float32", "bfloat16", "float16")
OFFLOADS = ("none", "model", "group")


Config = TypeVar("Config")


@dataclass(kw_only=True)
class ModelConfig:
    """A pipeline on disk or on the hub, and the defaults its model card gives."""

    name: str = "wan_tiny"
    weights: str = "builtin:wan_tiny"
    """Hub id, a local folder, or `builtin:NAME` for a model that ships with tapvideo."""
    revision: str | None = None
    pipeline: str = "WanPipeline"
    """Class of the pipeline, as `model_index.json` of the weights names it."""
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
    boundary: float | None = None
    """Where a second expert takes over, as a share of the noise; None where there is one transformer."""
    call: dict[str, Any] = field(default_factory=dict[str, Any])
    """Further arguments of the pipeline's call, by diffusers' names."""
    download_gib: float = 0.0
    """Size of the download, for the message that says what is missing."""

    def __post_init__(self) -> None:
        """Check every value that does not depend on the weights."""
        one_of("model.pipeline", self.pipeline, tuple(KINDS))
        if self.boundary is not None and not 0 < self.boundary < 1:
            raise ConfigError(f"model.boundary={self.boundary!r} is no share of the noise; allowed: between 0 and 1")
        for key, value in self.call.items():
            plain = all(isinstance(part, str | int | float | None) for part in _parts(value))
            if not plain:
                raise ConfigError(
                    f"model.call.{key}={value!r} is no plain value; allowed: numbers, texts, booleans, lists of them"
                )


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
    image: str | None = None
    """Picture that the video begins with, for models that make videos from one."""
    last_image: str | None = None
    """Picture that it ends with."""
    lora: str | None = None
    """A LoRA for the model: a file of safetensors, or a folder with one."""
    lora_2: str | None = None
    """Another one for the second of two experts; null: that of the first."""
    lora_scale: float = 1.0
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
        self._check_pipeline()
        one_of("dtype", self.dtype, DTYPES)
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", self.device):
            raise ConfigError(f"device={self.device!r} is not known; allowed: auto, cpu, cuda, cuda:N")
        one_of("offload", self.offload, OFFLOADS)
        for key in ("steps", "height", "width", "num_frames", "fps", "max_sequence_length"):
            at_least(key, getattr(self, key), 1)
        at_least("guidance", self.guidance, 0)
        if not math.isfinite(self.lora_scale) or (self.lora is None and self.lora_scale != 1):
            allowed = "a number" if self.lora else "1.0 without a lora"
            raise ConfigError(f"lora_scale={self.lora_scale!r} cannot be; allowed: {allowed}")
        if not 0 <= self.quality <= 51:
            raise ConfigError(f"quality={self.quality!r} is no x264 rate factor; allowed: 0 (best) to 51")
        positive("flow_shift", self.flow_shift)
        check_seeds("seeds", self.seeds)

    def _check_pipeline(self) -> None:
        name, kind = self.model.pipeline, self.kind
        if self.scheduler not in kind.schedulers:
            allowed = ", ".join(kind.schedulers)
            raise ConfigError(f"scheduler={self.scheduler!r} does not go with a {name}; allowed: {allowed}")
        if self.image is not None and kind.image_class is None:
            raise ConfigError(f"image={self.image!r}: a {name} makes {kind.product} from text alone; allowed: null")
        if kind.longest_text is not None and self.max_sequence_length > kind.longest_text:
            raise ConfigError(
                f"max_sequence_length={self.max_sequence_length!r} is too long for a {name}; allowed: up to "
                f"{kind.longest_text}"
            )
        if kind.makes_images and self.num_frames != 1:
            raise ConfigError(f"num_frames={self.num_frames!r}: a {name} makes pictures; allowed: 1")
        if self.last_image is not None and not kind.last_image:
            raise ConfigError(f"last_image={self.last_image!r}: a {name} knows no last frame; allowed: null")
        for key in ("audio_guidance_scale", *(sound + scale for scale, _ in kind.scales for sound in ("", "audio_"))):
            value = self.model.call.get(key)
            if isinstance(value, bool) or not isinstance(value, int | float | None):
                raise ConfigError(f"model.call.{key}={value!r} is no scale of guidance; allowed: a number, null")

    @property
    def kind(self) -> PipelineKind:
        """What is known of the model's pipeline class."""
        return KINDS[self.model.pipeline]

    @property
    def is_guided(self) -> bool:
        """Whether every step has a branch without the prompt."""
        key = self.kind.guidance
        if float(self.model.call.get("audio_guidance_scale") or 0) > 1:  # LTX-2's sound has a scale of its own
            return True
        if self.kind.guidance_argument is None:  # a guider leaves a branch out at 1 alone
            return not math.isclose(self.guidance, 1)
        return (self.guidance if key == "guidance" else float(self.model.call.get(key, 1.0))) > 1

    @property
    def branches(self) -> int:
        """Passes through the transformer that a step is made of, also where one call makes two of them."""
        return 1 + self.is_guided + sum(self._exceeds(name, least) for name, least in self.kind.scales)

    def _exceeds(self, name: str, least: float) -> bool:
        """Whether a scale of the call, or the sound's, is above a value; None is the pipeline's own."""
        keys = (name, f"audio_{name}")
        return any((self.model.call.get(key) or 0) > least for key in keys)

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


def _parts(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


_ALLOWED = {"to Integer": "a whole number", "to Float": "a number", "not a valid bool": "true, false"}
"""What omegaconf's complaint about a type leaves out."""


def _readable(error: OmegaConfBaseException) -> str:
    first_line = str(error.msg or error).splitlines()[0]
    key = error.full_key or error.key
    if "is not a ListConfig" in first_line:  # which speaks of omegaconf's own classes
        return f"{key} is a list; allowed: {key}=[...]"
    if "Incompatible value 'None'" in first_line:
        return f"{key}=null says nothing; allowed: a value"
    allowed = next((f"; allowed: {allowed}" for part, allowed in _ALLOWED.items() if part in first_line), "")
    return f"{key}: {first_line}{allowed}" if key else first_line


def config_dir() -> Path:
    """The folder of Hydra's yaml files: inside the installed package, or beside it in a clone."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "conf"
