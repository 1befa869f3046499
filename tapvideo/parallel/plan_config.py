"""What a plan rests on."""

from dataclasses import dataclass, field

from tapvideo.checks import ConfigError, at_least, one_of, positive
from tapvideo.config import DTYPES, OFFLOADS, ForecastConfig, ModelConfig, ScheduleConfig, TapConfig
from tapvideo.parallel.arch import Architecture
from tapvideo.parallel.attention import ATTENTIONS
from tapvideo.parallel.config import ParallelConfig
from tapvideo.parallel.estimate import Machine

FORMATS = ("markdown", "json")


@dataclass(kw_only=True)
class PlanConfig:
    """Everything that a plan rests on: a run as `GenerateConfig` has it, ranks, and the machine."""

    model: ModelConfig = field(default_factory=ModelConfig)
    arch: Architecture = field(default_factory=Architecture)
    """Sizes of the model's parts; those of `model` unless another is named."""
    tap: ForecastConfig = field(default_factory=ForecastConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    world: int = 8
    """Ranks, one GPU each."""
    steps: int = 50
    height: int = 720
    width: int = 1280
    num_frames: int = 81
    guidance: float = 5.0
    max_sequence_length: int = 512
    dtype: str = "bfloat16"
    offload: str = "none"
    """Weights on the GPU in the loop: all (`none`), the transformer's (`model`), or next to nothing (`group`)."""
    tflops: float = 989.0
    """Of one GPU, dense, in `dtype`."""
    efficiency: float = 0.5
    """Share of `tflops` that a transformer reaches."""
    gpu_gib: float = 80.0
    nvlink: float = 400.0
    """GB/s that a GPU receives from others of its node, as reached."""
    internode: float = 45.0
    """GB/s that a GPU receives from other nodes, as reached."""
    memory: float = 2800.0
    """GB/s between a GPU and its memory, as reached."""
    latency: float = 20.0
    """Microseconds that a collective takes beside its bytes."""
    gpus_per_node: int = 8
    scaling: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32, 64])
    """Numbers of GPUs in the scaling table."""
    format: str = "markdown"

    def __post_init__(self) -> None:
        """Check every value that does not depend on another."""
        for key in ("world", "steps", "max_sequence_length", "gpus_per_node"):
            at_least(key, getattr(self, key), 1)
        for key in ("tflops", "efficiency", "gpu_gib", "nvlink", "internode", "memory"):
            positive(key, getattr(self, key))
        for key in ("latency", "guidance"):
            at_least(key, getattr(self, key), 0)
        if self.efficiency > 1:
            raise ConfigError(f"efficiency={self.efficiency!r} is a share; allowed: above 0, up to 1")
        one_of("dtype", self.dtype, DTYPES)
        one_of("offload", self.offload, OFFLOADS)
        one_of("format", self.format, FORMATS)
        if self.parallel.attention not in ("auto", *ATTENTIONS):
            allowed = ", ".join(("auto", *ATTENTIONS))
            raise ConfigError(
                f"parallel.attention={self.parallel.attention!r} sends what we do not count; allowed: {allowed}"
            )
        if any(world < 1 for world in self.scaling):
            raise ConfigError(f"scaling={self.scaling!r} is not a list of numbers of GPUs; allowed: integers from 1")
        depth, layers, most = self.tap.probe_depth, self.tap.recompute.kv_layers, self.arch.layers - 1
        if self.tap.probe != "modulated" and depth > most:
            raise ConfigError(f"tap.probe_depth={depth!r} of {most + 1} blocks; allowed: 1 to {most}")
        if any(layer > most for layer in layers):
            raise ConfigError(f"tap.recompute.kv_layers={layers!r} of {most + 1} blocks; allowed: 0 to {most}")

    @property
    def tap_config(self) -> TapConfig:
        """The forecast and the schedule as one."""
        values = {name: getattr(self.tap, name) for name in ForecastConfig.__dataclass_fields__}
        return TapConfig(schedule=self.schedule, **values)

    def machine(self, *, gpus_per_node: int) -> Machine:
        """The machine with nodes of this size."""
        return Machine(
            tflops=self.tflops * self.efficiency, memory=self.memory, nvlink=self.nvlink, internode=self.internode,
            latency=self.latency, gpus_per_node=gpus_per_node,
        )  # fmt: skip
