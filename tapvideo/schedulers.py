"""The scheduler of a run, its noise levels, and the plan that follows from them where there are two experts."""

from typing import Any, cast

import diffusers
import numpy as np
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule

from tapvideo.config import ConfigError, GenerateConfig
from tapvideo.planning import make_plan
from tapvideo.schedule import Plan, StepKind
from tapvideo.weights import component_config, find_configs, latent_grid, patch_sizes, read_scheduler

Scheduler = SchedulerMixin

_MOCHI_THRESHOLD = 0.025  # of noise, up to which its pipeline goes in even steps


def make_scheduler(config: GenerateConfig) -> Scheduler:
    """The scheduler of a run.

    `unipc` and `euler` follow from the config alone, but for models whose shift follows from the number of tokens; the
    others, and those, from what is stored beside the weights: a dry run shows what a run does.

    Raises:
        ConfigError: if the weights are asked for and not at hand, or their scheduler is none of diffusers' own.
    """
    if config.scheduler == "euler":
        return FlowMatchEulerDiscreteScheduler(shift=config.flow_shift)
    if config.scheduler == "unipc" and not config.kind.own_shift:
        return UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=config.flow_shift
        )
    stored = read_scheduler(find_configs(config.model))
    if config.scheduler == "unipc":
        shift = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
        return _from_stored(UniPCMultistepScheduler, stored, **shift)
    if config.scheduler == "ddim":
        return _from_stored(CogVideoXDDIMScheduler, stored, timestep_spacing="trailing")
    if config.scheduler == "dpm":
        return _from_stored(CogVideoXDPMScheduler, stored, timestep_spacing="trailing")
    name = str(stored.get("_class_name"))
    found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, SchedulerMixin)):
        raise ConfigError(f"model.weights={config.model.weights!r} has a scheduler {name}; allowed: diffusers' own")
    return _from_stored(found, stored)


class NodeUniPC(UniPCMultistepScheduler):
    """UniPC that takes some of the steps of a longer run, and no others: what forecasts on those steps compete with."""

    nodes: tuple[int, list[int]]
    """Steps of the longer run, and those that are taken."""

    @classmethod
    def at(cls, scheduler: Any, num_steps: int, steps: list[int]) -> "NodeUniPC":
        """The same scheduler on these steps alone."""
        made = cast(Any, cls).from_config(scheduler.config)
        made.nodes = num_steps, steps
        return made

    def set_timesteps(
        self, num_inference_steps: Any = None, device: Any = None, sigmas: Any = None, mu: Any = None
    ) -> None:
        """The nodes, whatever the number of steps asked for."""
        num_steps, steps = self.nodes
        super().set_timesteps(num_steps, device=device, sigmas=sigmas, mu=mu)
        self.timesteps = self.timesteps[steps]
        self.sigmas = torch.cat([self.sigmas[steps], self.sigmas[-1:]])
        self.num_inference_steps = len(steps)


def noise_levels(config: GenerateConfig) -> list[tuple[float | None, float]]:
    """Sigma, where the scheduler has it, and timestep of every step of a run.

    Raises:
        ConfigError: as `make_scheduler`, and where a shift by the number of tokens needs weights that are not at hand.
    """
    scheduler: Any = make_scheduler(config)
    scheduler.set_timesteps(**_handed(config, scheduler))
    timesteps = torch.as_tensor(scheduler.timesteps).tolist()
    known = getattr(scheduler, "sigmas", None)
    sigmas = [None] * len(timesteps) if known is None else torch.as_tensor(known)[: len(timesteps)].tolist()
    return list(zip(sigmas, timesteps, strict=True))


def experts(config: GenerateConfig) -> dict[str, range]:
    """Steps of every transformer of a run, by component name."""
    if config.model.boundary is None:
        return {"transformer": range(config.steps)}
    first = second_start(make_scheduler(config), config.model.boundary, config.steps)
    return {"transformer": range(first), "transformer_2": range(first, config.steps)}


def expert_starts(config: GenerateConfig) -> list[int]:
    """The first step of every transformer of a run.

    Raises:
        ConfigError: as `make_scheduler`.
    """
    return [steps.start for steps in experts(config).values()]


def second_start(scheduler: Any, boundary: float, num_steps: int) -> int:
    """The second expert's first step in a run of a pipeline with this scheduler, as Wan's pipelines count it."""
    fresh = type(scheduler).from_config(scheduler.config)
    fresh.set_timesteps(num_steps)
    return sum(timestep >= boundary * fresh.config.num_train_timesteps for timestep in fresh.timesteps.tolist())


def plan_steps(config: GenerateConfig) -> Plan:
    """The kinds of all steps; an expert that takes over in mid-run warms up first.

    Raises:
        ConfigError: if the schedule names steps that the run does not have.
    """
    try:
        plan = make_plan(config.tap_config, config.steps)
    except ValueError as error:
        raise ConfigError(f"{error} (steps={config.steps})") from error
    starts = [start for start in expert_starts(config) if 0 < start < config.steps]
    warm = {step for start in starts for step in range(start, start + config.schedule.expert_warmup)}
    return tuple(StepKind.FULL if step in warm else kind for step, kind in enumerate(plan))


def _from_stored(kind: type[SchedulerMixin], stored: dict[str, Any], **changes: Any) -> Scheduler:
    return cast(Any, kind).from_config(stored, **changes)


def _handed(config: GenerateConfig, scheduler: Any) -> dict[str, Any]:
    """What the pipeline hands its scheduler before the first step, by the names of `set_timesteps`."""
    kind, steps = config.kind.sigmas, config.steps
    linear = np.linspace(1.0, 1 / steps, steps)
    if kind == "quadratic":
        return {"sigmas": np.array(linear_quadratic_schedule(steps, _MOCHI_THRESHOLD))}
    if kind == "whole":
        known = scheduler.config.num_train_timesteps
        whole = np.linspace(known, 1.0, steps).astype(np.int64).astype(np.float32)
        return {"timesteps": whole, "sigmas": whole / known, "mu": _root_shift(config, scheduler)}
    shift = {"mu": _shift(config, scheduler)} if config.kind.own_shift else {}
    if kind == "scheduler" or (kind == "linear_unless_flow" and scheduler.config.get("use_flow_sigmas")):
        return {"num_inference_steps": steps, **shift}
    return {"sigmas": linear, **shift}


def _shift(config: GenerateConfig, scheduler: Any) -> float:
    """What LTX's, FLUX's and Qwen-Image's pipelines hand their scheduler: linear in the number of tokens."""
    folder = find_configs(config.model)
    t, h, w = latent_grid(config, component_config(folder, "vae"), component_config(folder, "transformer"))
    own = scheduler.config
    low, high = own.get("base_image_seq_len", 256), own.get("max_image_seq_len", 4096)
    least, most = own.get("base_shift", 0.5), own.get("max_shift", 1.15)
    return least + (t * h * w - low) * (most - least) / (high - low)


def _root_shift(config: GenerateConfig, scheduler: Any) -> float:
    """What CogView4's pipeline hands its scheduler: linear in the root of the number of tokens."""
    folder = find_configs(config.model)
    transformer = component_config(folder, "transformer")
    _, h, w = latent_grid(config, component_config(folder, "vae"), transformer)
    own, (_, rows, columns) = scheduler.config, patch_sizes(transformer)
    root = (h * w / (rows * columns) / own.get("base_image_seq_len", 256)) ** 0.5
    return root * own.get("max_shift", 0.75) + own.get("base_shift", 0.25)
