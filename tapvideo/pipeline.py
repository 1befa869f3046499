"""From a config to a diffusers pipeline, on its device, and TAP on and off it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanPipeline
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.utils import disable_progress_bars
from transformers.utils import logging as transformers_logging

from tapvideo.config import ConfigError, GenerateConfig
from tapvideo.enable import Tap, enable_tap
from tapvideo.parallel.launch import world_size
from tapvideo.parallel.topology import Topology, alone
from tapvideo.weights import check_sizes, find_configs, find_weights, pipeline_class_name

PIPELINES = {"WanPipeline": WanPipeline}
"""Pipelines that can be loaded, by the class name in their `model_index.json`."""

Scheduler = UniPCMultistepScheduler | FlowMatchEulerDiscreteScheduler


def make_scheduler(config: GenerateConfig) -> Scheduler:
    """The flow-matching scheduler of a run.

    It follows from the config alone, not from what is stored beside the weights: a dry run shows what a run does.
    """
    if config.scheduler == "euler":
        return FlowMatchEulerDiscreteScheduler(shift=config.flow_shift)
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=config.flow_shift
    )


def noise_levels(config: GenerateConfig) -> list[tuple[float, float]]:
    """Sigma and timestep of every step of a run."""
    scheduler = make_scheduler(config)
    scheduler.set_timesteps(config.steps)
    sigmas, timesteps = torch.as_tensor(scheduler.sigmas), torch.as_tensor(scheduler.timesteps)
    return list(zip(sigmas[:-1].tolist(), timesteps.tolist(), strict=True))  # the last sigma is the clean end


def resolve_device(config: GenerateConfig) -> torch.device:
    """The device of this process; `auto` is the GPU of its local rank where there is one.

    Raises:
        ConfigError: if there is no such device, or the config asks to offload from a CPU.
    """
    name, own = config.device, f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    if name == "auto":
        name = own if torch.cuda.is_available() else "cpu"
    elif name == "cuda":
        name = own
    elif name.startswith("cuda:") and name != own and world_size() > 1:
        raise ConfigError(f"device={name!r} on several ranks, each of which has its own GPU; allowed: auto, cpu, cuda")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device={config.device!r} is not known; allowed: auto, cpu, cuda, cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device={config.device!r}: torch sees {torch.cuda.device_count()} CUDA devices here; allowed: auto, cpu"
        )
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.type == "cuda" and local > torch.cuda.device_count():  # said by every rank, so that the first is heard
        raise ConfigError(
            f"device={config.device!r}: {local} ranks on a machine where torch sees {torch.cuda.device_count()} CUDA "
            "devices; allowed: one rank a device, or cpu"
        )
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device={config.device!r} is not supported; allowed: auto, cpu, cuda, cuda:N")
    if device.type == "cpu" and config.offload != "none":
        raise ConfigError(
            f"offload={config.offload!r} moves weights off a GPU, and device={device}; allowed here: none"
        )
    return device


def load_pipeline(config: GenerateConfig) -> WanPipeline:
    """The pipeline of a config, placed and ready; TAP is off.

    Safetensors are loaded and nothing else, and no code from the model's repository runs.

    Raises:
        ConfigError: if the model, its size or its placement is not possible here.
    """
    device = resolve_device(config)
    configs = find_configs(config.model)
    class_name = pipeline_class_name(configs)
    if class_name not in PIPELINES:
        known = ", ".join(PIPELINES)
        raise ConfigError(f"model.weights={config.model.weights!r} is a {class_name}; allowed: {known}")
    check_sizes(config, configs)
    folder = find_weights(config.model)
    pipe = PIPELINES[class_name].from_pretrained(
        str(folder),
        scheduler=make_scheduler(config),
        # Wan's VAE loses visibly in half precision and is a small part of the time.
        dtype={"default": getattr(torch, config.dtype), "vae": torch.float32},
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
    )
    if pipe.transformer_2 is not None:
        raise ConfigError(
            f"model.weights={config.model.weights!r} has two experts (Wan 2.2), which reports cannot show yet; "
            "allowed: models with one transformer, or enable_tap from Python"
        )
    pipe.set_progress_bar_config(disable=True)  # ours also shows full and forecast steps
    if config.vae_tiling:
        pipe.vae.enable_tiling()
    if config.compile:
        _compile(pipe)
    _place(pipe, config, device)
    return pipe


@contextmanager
def accelerated(pipe: WanPipeline, config: GenerateConfig, topology: Topology | None = None) -> Iterator[Tap | None]:
    """The pipeline with TAP on, for the length of a block; shared by the ranks of `topology`.

    Plain diffusers, and None, where TAP is off and one rank does everything.

    Raises:
        ConfigError: if TAP does not support the model.
    """
    topology = topology or alone()
    if not config.tap.enabled and topology.is_alone:
        yield None
        return
    offloads = config.offload == "model"
    if offloads:  # accelerate's hooks go over ours: its clean-up after each run takes off what came later
        pipe.remove_all_hooks()
    try:
        tap = enable_tap(pipe, config.tap_config, topology)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"tap={config.tap.name}: {error}") from error
    try:
        if offloads:
            pipe.enable_model_cpu_offload(device=resolve_device(config))
        yield tap
    finally:
        tap.disable()


def latent_size(pipe: WanPipeline, config: GenerateConfig) -> tuple[int, int, int]:
    """Frames, rows and columns of a clip's latents."""
    space, time = pipe.vae_scale_factor_spatial, pipe.vae_scale_factor_temporal
    return (config.num_frames - 1) // time + 1, config.height // space, config.width // space


def hide_loading_bars(*, downloads: bool) -> None:
    """No bars while components load, in this process; of `downloads` too where nobody wants to see them."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    if downloads:
        disable_progress_bars()


def _compile(pipe: WanPipeline) -> None:
    """Compile each kind of block once; TAP's own logic stays outside the graphs."""
    for transformer in (pipe.transformer, pipe.transformer_2):
        if transformer is not None:
            transformer.compile_repeated_blocks()


def _place(pipe: WanPipeline, config: GenerateConfig, device: torch.device) -> None:
    if config.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif config.offload == "group":
        # Without a stream: prefetching expects every block to run, in order, on every step.
        pipe.enable_group_offload(onload_device=device, offload_type="leaf_level", use_stream=False)
    else:
        pipe.to(device)
