"""Training-free acceleration of video diffusion transformers by per-token forecasting (TAP, arXiv 2603.03792)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tapvideo.config import ConfigError, ScheduleConfig, TapConfig
    from tapvideo.enable import disable_tap, enable_tap
    from tapvideo.resolve import default_config

__all__ = ["ConfigError", "ScheduleConfig", "TapConfig", "default_config", "disable_tap", "enable_tap"]

_HOMES = {
    "ConfigError": "tapvideo.config",
    "ScheduleConfig": "tapvideo.config",
    "TapConfig": "tapvideo.config",
    "default_config": "tapvideo.resolve",
    "disable_tap": "tapvideo.enable",
    "enable_tap": "tapvideo.enable",
}


def __getattr__(name: str) -> Any:
    """Import on first use: commands that need no model do not wait for torch and diffusers."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tapvideo' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """What can be imported from here."""
    return sorted({*globals(), *__all__})
