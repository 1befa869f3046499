"""From a config to a diffusers pipeline, on its device, and TAP on and off it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.pipelines.hunyuan_video1_5.image_processor import HunyuanVideo15ImageProcessor
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.utils import disable_progress_bars
from transformers.utils import logging as transformers_logging

from tapvideo.config import ConfigError, GenerateConfig
from tapvideo.enable import Tap, enable_tap
from tapvideo.images import read_images
from tapvideo.lora import check_lora, load_lora
from tapvideo.models import compile_blocks
from tapvideo.parallel.launch import world_size
from tapvideo.parallel.topology import Topology, alone
from tapvideo.pipeline_kinds import KINDS
from tapvideo.sample import check_call
from tapvideo.schedulers import make_scheduler
from tapvideo.weights import (
    check_sizes,
    component_config,
    find_configs,
    find_weights,
    latent_grid,
    pipeline_index,
    vae_strides,
)

Pipeline = Any
"""Of a class in `pipeline_kinds.KINDS`; what these have in common, diffusers has no type for."""


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
    device = torch.device(name)
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
    if device.type == "cpu" and config.offload != "none":
        raise ConfigError(
            f"offload={config.offload!r} moves weights off a GPU, and device={device}; allowed here: none"
        )
    return device


def load_pipeline(config: GenerateConfig) -> Pipeline:
    """The pipeline of a config, placed and ready; TAP is off.

    Safetensors are loaded and nothing else, and no code from the model's repository runs.

    Raises:
        ConfigError: if the model, its size, its picture or its placement is not possible here.
    """
    device = resolve_device(config)
    read_images(config)  # better now than after the weights
    configs = find_configs(config.model)
    kind = _pipeline_class(config, configs)
    check_sizes(config, configs)
    if config.kind.sized_by_image:
        _check_own_size(config, configs)
    if config.image and config.model.pipeline == "LTX2Pipeline":
        _check_compression(config)
    check_call(config, kind)
    check_lora(config, kind)
    scheduler = make_scheduler(config)
    folder = find_weights(config.model)
    pipe = kind.from_pretrained(
        str(folder),
        scheduler=scheduler,
        dtype={"default": getattr(torch, config.dtype), **_exact_parts(config)},
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
    )
    load_lora(pipe, config)
    pipe.set_progress_bar_config(disable=True)  # ours also shows full and forecast steps
    if config.kind.guidance_argument is None:
        pipe.guider = pipe.guider.new(guidance_scale=config.guidance)
    if config.vae_tiling:
        pipe.vae.enable_tiling()
    if config.compile:
        _compile(pipe)
    _place(pipe, config, device)
    return pipe


def _pipeline_class(config: GenerateConfig, folder: Path) -> Any:
    """The class that makes videos as the config asks for, from the weights in `folder`."""
    index, name, weights = pipeline_index(folder), config.model.pipeline, config.model.weights
    stored = str(index.get("_class_name"))
    if stored != name:
        known = f", or model.pipeline={stored}, for which conf/model has sizes" if stored in KINDS else ""
        raise ConfigError(f"model.weights={weights!r} is a {stored}; allowed: {name}{known}")
    boundary = index.get("boundary_ratio") if index.get("transformer_2", [None])[0] else None
    if boundary != config.model.boundary:
        has = "has one transformer" if boundary is None else f"has two experts, which change at {boundary}"
        raise ConfigError(
            f"model.boundary={config.model.boundary}, and model.weights={weights!r} {has}; "
            f"allowed: {'null' if boundary is None else boundary}"
        )
    if name.startswith("Wan"):
        _check_pictures(config, index, component_config(folder, "transformer"))
    return getattr(diffusers, str(config.kind.image_class) if config.image else name)


def _check_pictures(config: GenerateConfig, index: dict[str, Any], transformer: dict[str, Any]) -> None:
    """Which pictures Wan's weights take; their pipeline classes are the same."""
    weights, is_mixed = config.model.weights, bool(index.get("expand_timesteps"))  # 5B: from text, or from a picture
    if config.image and not (config.kind.needs_image or is_mixed):
        raise ConfigError(
            f"image={config.image!r}: model.weights={weights!r} makes videos from text alone; allowed: null"
        )
    looks_at_one = transformer.get("image_dim") and not transformer.get("pos_embed_seq_len")
    if config.last_image and (is_mixed or looks_at_one):
        raise ConfigError(
            f"last_image={config.last_image!r}: model.weights={weights!r} knows no last frame; allowed: null, or "
            "first-and-last-frame weights"
        )


def _check_compression(config: GenerateConfig) -> None:
    """LTX-2 compresses a picture as a video before it looks at it, which would fail only after the text is encoded."""
    if config.model.call.get("image_crf") != 0 and find_spec("av") is None:
        raise ConfigError(
            f"image={config.image!r}: a {config.kind.image_class} compresses it with PyAV, which is not installed; "
            "allowed: pip install 'tapvideo[ltx2]', or +model.call.image_crf=0"
        )


def _check_own_size(config: GenerateConfig, folder: Path) -> None:
    """Where the pipeline makes a size of its own from the picture's, which we hand over as large as the video."""
    _, spatial = vae_strides(component_config(folder, "vae"))
    target = component_config(folder, "transformer").get("target_size", 640)
    processor = HunyuanVideo15ImageProcessor(vae_scale_factor=spatial)
    height, width = map(int, processor.calculate_default_height_width(config.height, config.width, target))
    if (height, width) != (config.height, config.width):
        raise ConfigError(
            f"height={config.height} and width={config.width}: model.weights={config.model.weights!r} makes videos of "
            f"one area, {height} x {width} of this shape; allowed: height={height} width={width}"
        )


def _exact_parts(config: GenerateConfig) -> dict[str, torch.dtype]:
    """Parts whose dtype is not that of the rest."""
    exact = {"image_encoder": torch.float32}  # Wan's: the pipeline hands it pixels as they come
    vae = config.kind.vae_dtype
    if vae == "float32" or (vae == "float16" and config.dtype == "float32"):
        return {**exact, "vae": torch.float32}
    return {**exact, "vae": torch.float16} if vae == "float16" else exact


@contextmanager
def accelerated(pipe: Pipeline, config: GenerateConfig, topology: Topology | None = None) -> Iterator[Tap | None]:
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


def latent_size(pipe: Pipeline, config: GenerateConfig) -> tuple[int, int, int]:
    """Frames, rows and columns of a clip's latents."""
    return latent_grid(config, dict(pipe.vae.config), dict(pipe.transformer.config))


def hide_loading_bars(*, downloads: bool) -> None:
    """No bars while components load, in this process; of `downloads` too where nobody wants to see them."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    if downloads:
        disable_progress_bars()


def _compile(pipe: Pipeline) -> None:
    """Compile each kind of block once; TAP's own logic stays outside the graphs."""
    for name in ("transformer", "transformer_2"):
        transformer = getattr(pipe, name, None)
        if transformer is not None:
            compile_blocks(transformer)


def _place(pipe: Pipeline, config: GenerateConfig, device: torch.device) -> None:
    if config.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif config.offload == "group":
        # Without a stream: prefetching expects every block to run, in order, on every step.
        pipe.enable_group_offload(onload_device=device, offload_type="leaf_level", use_stream=False)
    else:
        pipe.to(device)
