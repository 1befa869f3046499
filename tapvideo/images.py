"""Pictures that videos begin or end with: read, checked, and told apart by content."""

import hashlib
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from tapvideo.config import ConfigError, GenerateConfig

_KEYS = ("image", "last_image")


def read_images(config: GenerateConfig) -> dict[str, Image.Image]:
    """The pictures of a run by their keys, upright, in RGB, of the video's size.

    Raises:
        ConfigError: if one is missing that the model needs, or cannot be read.
    """
    if config.kind.needs_image and config.image is None:
        raise ConfigError(f"image=None, and a {config.model.pipeline} needs one; allowed: the path of a picture")
    if config.image is None and config.last_image is not None:
        raise ConfigError(f"last_image={config.last_image!r} needs image, which the video begins with")
    paths = {key: getattr(config, key) for key in _KEYS}
    return {key: _read(key, path, config) for key, path in paths.items() if path is not None}


def digests(config: GenerateConfig) -> dict[str, Any]:
    """What stands for the pictures of a run: their bytes, whatever they are called.

    Raises:
        ConfigError: if one cannot be read.
    """
    paths = {key: getattr(config, key) for key in _KEYS}
    return {key: None if path is None else _digest(key, path) for key, path in paths.items()}


def _digest(key: str, path: str) -> str:
    try:
        return hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise ConfigError(_unreadable(key, path, error)) from error


def _read(key: str, path: str, config: GenerateConfig) -> Image.Image:
    try:
        with Image.open(Path(path).expanduser()) as opened:
            picture = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError) as error:
        raise ConfigError(_unreadable(key, path, error)) from error
    # As large as the video: some pipelines look at the picture itself, and not at what they scaled it to.
    return picture.resize((config.width, config.height), Image.Resampling.LANCZOS)


def _unreadable(key: str, path: str, error: Exception) -> str:
    why = " ".join(str(error).split()) or type(error).__name__
    return f"{key}={path!r} cannot be read ({why}); allowed: the path of a picture, e.g. a png or jpeg"
