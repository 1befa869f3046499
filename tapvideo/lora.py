"""A LoRA on a pipeline: from a file or a folder, safetensors and nothing else."""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tapvideo.config import ConfigError, GenerateConfig

_KEYS = ("lora", "lora_2")
_ALLOWED = "a .safetensors file, or a folder with one"


def lora_files(config: GenerateConfig) -> dict[str, Path]:
    """The files that `lora` and `lora_2` name, by key.

    Raises:
        ConfigError: if one is not there, not safetensors, one of several in a folder, or for no expert that is there.
    """
    if config.lora_2 is not None and (config.model.boundary is None or config.lora is None):
        raise ConfigError(
            f"lora_2={config.lora_2!r} is for the second of two experts, beside lora for the first; allowed here: null"
        )
    return {key: _file(key, str(name)) for key in _KEYS if (name := getattr(config, key)) is not None}


def lora_digests(config: GenerateConfig) -> dict[str, str | None]:
    """What stands for LoRAs: their bytes, whatever they are called.

    Raises:
        ConfigError: as `lora_files`, or if one cannot be read.
    """
    found: dict[str, str | None] = dict.fromkeys(_KEYS)
    for key, path in lora_files(config).items():
        try:
            with path.open("rb") as file:
                found[key] = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        except OSError as error:
            raise ConfigError(f"{key}={str(path)!r} cannot be read ({error}); allowed: {_ALLOWED}") from error
    return found


def check_lora(config: GenerateConfig, kind: type) -> None:
    """Refuse what cannot be loaded, before any weight is.

    Raises:
        ConfigError: as `lora_files`, or if pipelines of this class take none, or peft is missing.
    """
    if not lora_files(config):
        return
    if not hasattr(kind, "load_lora_weights"):
        raise ConfigError(f"lora={config.lora!r}: a {kind.__name__} takes none; allowed: null")
    if find_spec("peft") is None:
        wanted = "null, or pip install 'tapvideo[lora]'"
        raise ConfigError(f"lora={config.lora!r} needs peft, which is not installed; allowed: {wanted}")


def load_lora(pipe: Any, config: GenerateConfig) -> None:
    """Put the LoRAs on the pipeline, at their scale; one alone goes to both experts, where there are two.

    Raises:
        ConfigError: if a file is no LoRA of this model.
    """
    files = lora_files(config)
    if not files:
        return
    _load(pipe, config, "lora", files["lora"], {})
    if config.model.boundary is not None:
        key = "lora_2" if "lora_2" in files else "lora"
        _load(pipe, config, key, files[key], {"load_into_transformer_2": True})
    pipe.set_adapters(["lora"], [config.lora_scale])


def _load(pipe: Any, config: GenerateConfig, key: str, path: Path, where: dict[str, Any]) -> None:
    value, weights = getattr(config, key), config.model.weights
    own = {"weight_name": path.name, "adapter_name": "lora", "use_safetensors": True, "local_files_only": True}
    try:
        with _unplaced() as left:
            pipe.load_lora_weights(str(path.parent), **own, **where)
    except Exception as error:  # of whatever kind: diffusers, peft and safetensors each have their own
        why = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{key}={value!r} does not fit model.weights={weights!r} ({type(error).__name__}: {why}); "
            "allowed: a LoRA of this model"
        ) from error
    part = pipe.transformer_2 if where else pipe.transformer
    if "lora" not in getattr(part, "peft_config", {}):
        raise ConfigError(f"{key}={value!r} has nothing for model.weights={weights!r}; allowed: a LoRA of this model")
    if left:
        raise ConfigError(
            f"{key}={value!r} has tensors that model.weights={weights!r} has no place for, e.g. {left[0]}; "
            "allowed: a LoRA of this model"
        )


@contextmanager
def _unplaced() -> Iterator[list[str]]:
    """Tensors of a LoRA that the model has no place for: diffusers loads the others, and warns of these."""
    names: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            _, found, said = record.getMessage().partition("unexpected keys found in the model: ")
            names.extend(said.split(", ") if found else [])

    listener, logger = Listener(), logging.getLogger("diffusers")
    logger.addHandler(listener)
    try:
        yield names
    finally:
        logger.removeHandler(listener)


def _file(key: str, name: str) -> Path:
    path = Path(name).expanduser()
    found = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise ConfigError(f"{key}={name!r} has {len(found)} files of safetensors ({names}); allowed: {_ALLOWED}")
    if found[0].suffix != ".safetensors" or not found[0].is_file():
        raise ConfigError(f"{key}={name!r} is no file of safetensors; allowed: {_ALLOWED}")
    return found[0]
