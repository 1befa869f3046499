"""Training-free acceleration of video diffusion transformers by per-token forecasting (TAP, arXiv 2603.03792)."""

from tapvideo.config import ScheduleConfig, TapConfig
from tapvideo.enable import disable_tap, enable_tap

__all__ = ["ScheduleConfig", "TapConfig", "disable_tap", "enable_tap"]
