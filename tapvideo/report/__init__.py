"""A self-contained page that shows what a run made, how fast, and which predictor every token chose."""

from tapvideo.report.data import ChoiceMap, Clip, Report, Step, steps_and_maps
from tapvideo.report.html import render_report, write_report

__all__ = ["ChoiceMap", "Clip", "Report", "Step", "render_report", "steps_and_maps", "write_report"]
