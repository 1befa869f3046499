"""Where a model's files are, and whether they can make what the config asks for, before any weight is loaded."""

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HFValidationError

from tapvideo.config import ConfigError, GenerateConfig, ModelConfig

ASSETS = Path(__file__).parent / "assets"
_BUILTIN = "builtin:"
_CONFIG_FILES = ["model_index.json", "*/*.json", "*/*.model", "*/*.txt"]
_WEIGHT_FILES = [*_CONFIG_FILES, "*/*.safetensors"]  # never pickles, never code
_ENDS = 1 << 20  # bytes at each end of a weight file that stand for all of it
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_NO_LIMIT = 1 << 30


def find_configs(model: ModelConfig) -> Path:
    """The folder with the model's json files; from the hub, only those are downloaded.

    Raises:
        ConfigError: if there is no such model, or it is on the hub and the hub cannot be reached.
    """
    return _find(model, _CONFIG_FILES)


def find_weights(model: ModelConfig) -> Path:
    """The folder with all of the model's files, downloaded from the hub where they are not at hand.

    Raises:
        ConfigError: if a file is missing and cannot be downloaded; one line says what to download, and to where.
    """
    folder = _find(model, _WEIGHT_FILES)
    missing = _missing_weights(folder)
    if missing and _is_hub_id(model):
        raise ConfigError(_absent(model, f"{missing[0]} is missing from the download cache"))
    if missing:
        raise ConfigError(
            f"model.weights={model.weights!r} lacks {missing[0]}; allowed: folders of save_pretrained with safetensors"
        )
    return folder


def fingerprint_weights(folder: Path) -> str:
    """A hash of a model's files: all of small ones, size and both ends of large ones."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".safetensors", ".json") and p.is_file()):
        size = path.stat().st_size
        total.update(f"{path.relative_to(folder).as_posix()} {size}".encode())
        with path.open("rb") as file:
            total.update(file.read(_ENDS))
            file.seek(max(0, size - _ENDS))
            total.update(file.read())
    return total.hexdigest()[:16]


def check_sizes(config: GenerateConfig, folder: Path) -> None:
    """Check height, width and number of frames against the model in `folder`.

    Raises:
        ConfigError: if the model cannot make this size; the message names the nearest that it can.
    """
    transformer, vae = component_config(folder, "transformer"), component_config(folder, "vae")
    (temporal, spatial), (patch_t, *patch) = vae_strides(vae), patch_sizes(transformer)
    table = _longest(transformer)
    for key, patch_side in zip(("height", "width"), patch, strict=True):
        multiple = math.lcm(config.kind.multiple, spatial * patch_side)
        _check_step(key, getattr(config, key), step=multiple, offset=0, limit=spatial * table * patch_side)
        if transformer.get("use_learned_positional_embeddings"):  # one for every place of one size
            _check_only(key, getattr(config, key), spatial * transformer[f"sample_{key}"])
    # The first frame is a latent frame of its own; each later one covers `temporal` frames.
    step = temporal * (1 if config.kind.pads_frames else patch_t)
    _check_step("num_frames", config.num_frames, step=step, offset=1, limit=temporal * patch_t * (table - 1) + 1)
    if transformer.get("use_learned_positional_embeddings"):
        _check_only("num_frames", config.num_frames, transformer["sample_frames"])


def check_known_sizes(config: GenerateConfig) -> None:
    """As `check_sizes`, where the model is at hand: a dry run does not need it.

    Raises:
        ConfigError: if the model is here, and cannot make this size.
    """
    try:
        folder = find_configs(config.model)
    except ConfigError:
        return
    check_sizes(config, folder)


def vae_strides(vae: dict[str, Any]) -> tuple[int, int]:
    """Frames, and rows or columns, of a latent, from the `config.json` of a VAE."""
    temporal = vae.get("scale_factor_temporal") or vae.get("temporal_compression_ratio")
    spatial = vae.get("scale_factor_spatial") or vae.get("spatial_compression_ratio")
    if "spatio_temporal_scaling" in vae:  # LTX
        halvings = sum(vae["spatio_temporal_scaling"])
        temporal = temporal or vae.get("patch_size_t", 1) * 2**halvings
        spatial = spatial or vae.get("patch_size", 4) * 2**halvings
    elif "block_out_channels" in vae:  # CogVideoX, FLUX, CogView4
        spatial = spatial or 2 ** (len(vae["block_out_channels"]) - 1)
    elif "temperal_downsample" in vae:  # Wan's and Qwen-Image's, as they spell it
        spatial = spatial or 2 ** len(vae["temperal_downsample"])
    elif "spatial_expansions" in vae:  # Mochi
        temporal, spatial = (math.prod(vae[f"{kind}_expansions"]) for kind in ("temporal", "spatial"))
    return int(temporal or 4), int(spatial or 8)


def patch_sizes(transformer: dict[str, Any]) -> tuple[int, int, int]:
    """Latent frames, rows and columns of a token, from the `config.json` of a transformer."""
    patch = transformer.get("patch_size", [1, 2, 2])
    if isinstance(patch, int):
        return transformer.get("patch_size_t") or 1, patch, patch
    t, h, w = patch
    return t, h, w


def latent_grid(config: GenerateConfig, vae: dict[str, Any], transformer: dict[str, Any]) -> tuple[int, int, int]:
    """Frames, rows and columns of a clip's latents, from the two `config.json`."""
    temporal, spatial = vae_strides(vae)
    frames, patch = (config.num_frames - 1) // temporal + 1, patch_sizes(transformer)[0]
    spatial *= config.kind.packs
    return -(-frames // patch) * patch, config.height // spatial, config.width // spatial


def read_scheduler(folder: Path) -> dict[str, Any]:
    """The scheduler's config beside the weights.

    Raises:
        ConfigError: if the file is missing or not json.
    """
    return _read_json(folder / "scheduler" / "scheduler_config.json")


def component_config(folder: Path, name: str) -> dict[str, Any]:
    """The `config.json` of one component of a saved pipeline.

    Raises:
        ConfigError: if the file is missing or not json.
    """
    return _read_json(folder / name / "config.json")


def pipeline_index(folder: Path) -> dict[str, Any]:
    """What a saved pipeline says of itself: its class, components and settings.

    Raises:
        ConfigError: if the file that says so is missing or not json.
    """
    return _read_json(folder / "model_index.json")


def _find(model: ModelConfig, hub_patterns: list[str]) -> Path:
    if model.weights.startswith(_BUILTIN):
        return _builtin(model)
    local = Path(model.weights).expanduser()
    if local.is_dir():
        if not (local / "model_index.json").is_file():
            raise ConfigError(
                f"model.weights={model.weights!r} has no model_index.json; allowed: folders of save_pretrained"
            )
        return local
    if not _is_hub_id(model):
        raise ConfigError(
            f"model.weights={model.weights!r} does not exist; allowed: a folder, a hub id OWNER/NAME or builtin:NAME"
        )
    try:
        return Path(snapshot_download(model.weights, revision=model.revision, allow_patterns=hub_patterns))
    except (
        OSError,
        HFValidationError,
    ) as error:  # every error of the hub client about files and the network is an OSError
        raise ConfigError(_absent(model, str(error).strip().splitlines()[0])) from error


def _builtin(model: ModelConfig) -> Path:
    known = sorted(p.parent.name for p in ASSETS.glob("*/model_index.json"))
    name = model.weights.removeprefix(_BUILTIN)
    if name not in known:
        names = ", ".join(_BUILTIN + k for k in known) or "none in this installation"
        raise ConfigError(f"model.weights={model.weights!r} is not known; allowed: {names}")
    return ASSETS / name


def _is_hub_id(model: ModelConfig) -> bool:
    is_path = model.weights.startswith(_BUILTIN) or Path(model.weights).expanduser().is_dir()
    return not is_path and _HUB_ID.fullmatch(model.weights) is not None


def _absent(model: ModelConfig, reason: str) -> str:
    revision = f" --revision {model.revision}" if model.revision else ""
    size = f"about {model.download_gib:g} GiB, " if model.download_gib else ""
    return (
        f"model.weights={model.weights!r} is not on this machine and cannot be downloaded ({reason}); "
        f"where there is a network, run `hf download {model.weights}{revision}` ({size}to {constants.HF_HUB_CACHE}), "
        "or set model.weights to a folder with it"
    )


def _missing_weights(folder: Path) -> list[str]:
    """Weights that `model_index.json` names and the folder lacks; a component with a `config.json` has weights."""
    index = _read_json(folder / "model_index.json")
    components = [name for name, value in index.items() if isinstance(value, list) and value[0] is not None]
    missing = [f"{name}/" for name in components if not (folder / name).is_dir()]
    for part in (folder / name for name in components if (folder / name / "config.json").is_file()):
        shards = {
            f for index in part.glob("*.safetensors.index.json") for f in _read_json(index)["weight_map"].values()
        }
        if shards:
            missing += [f"{part.name}/{shard}" for shard in sorted(shards) if not (part / shard).is_file()]
        elif not any(part.glob("*.safetensors")):
            missing.append(f"{part.name}/*.safetensors")
    return missing


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.weights: {path} is missing or not json; allowed: folders of save_pretrained"
        ) from error


def _longest(transformer: dict[str, Any]) -> int:
    """Tokens along one side that the transformer has a rotary table for; only Wan's are of a fixed length."""
    default = 1024 if transformer.get("_class_name") == "WanTransformer3DModel" else _NO_LIMIT
    return transformer.get("rope_max_seq_len", default)


def _check_only(key: str, value: int, allowed: int) -> None:
    if value != allowed:
        raise ConfigError(f"{key}={value} does not fit this model, which learned one size; allowed: {allowed}")


def _check_step(key: str, value: int, *, step: int, offset: int, limit: int) -> None:
    if value % step != offset % step:
        below = (value - offset) // step * step + offset
        near = " or ".join(str(v) for v in (below, below + step) if 0 < v <= limit)
        rule = f"multiples of {step}" if not offset else f"{step} k + {offset}"
        raise ConfigError(f"{key}={value} does not fit this model; allowed: {rule}, e.g. {near or limit}")
    if value > limit:
        raise ConfigError(f"{key}={value} is larger than this model's position table; allowed: up to {limit}")
