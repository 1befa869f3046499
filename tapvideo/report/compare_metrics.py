"""What a metric is called, its unit, which way is better, and how its values are written."""

import math
from dataclasses import dataclass
from typing import Literal

from tapvideo.compare.results import Comparison

Better = Literal["higher", "lower", "zero"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric as the reader sees it."""

    key: str
    label: str
    unit: str
    digits: int
    better: Better | None
    """None: a metric that this page does not know, shown without a judgement."""

    def text(self, value: float | None) -> str:
        """The value without its unit; a dash where there is none."""
        return number(value, self.digits)

    def goodness(self, value: float) -> float:
        """A number that is larger where the value is better."""
        return {"higher": value, "lower": -value, "zero": -abs(value), None: value}[self.better]


_KNOWN: dict[str, tuple[str, str, int, Better]] = {
    "psnr": ("PSNR", "dB", 2, "higher"),
    "psnr_min": ("PSNR, worst frame", "dB", 2, "higher"),
    "ssim": ("SSIM", "", 4, "higher"),
    "ms_ssim": ("MS-SSIM", "", 4, "higher"),
    "vmaf": ("VMAF", "", 1, "higher"),
    "flip": ("FLIP", "", 4, "lower"),
    "lpips": ("LPIPS", "", 4, "lower"),
}


def metric(key: str, references: dict[str, str] | None = None) -> Metric:
    """The metric of a key; `NAME@REFERENCE` is NAME to another reference, whose label may be given."""
    name, _, reference = key.partition("@")
    plain = name.lower().replace("-", "_")
    label, unit, digits, better = _KNOWN.get(plain, (name, "", 4, None))
    if "flicker" in plain:
        label, better = "Flicker difference", "zero"
    elif "l2" in plain.split("_"):
        label, better = "Latents, relative L2", "lower"
    if reference:
        label = f"{label} to {(references or {}).get(reference, reference)}"
    return Metric(key, label, unit, digits, better)


def metrics_of(comparison: Comparison, references: dict[str, str] | None = None) -> list[Metric]:
    """Every metric of the table, the known ones first, those to other references last."""
    keys = dict.fromkeys(key for row in comparison.table for key in row.mean)
    order = list(_KNOWN)

    def rank(key: str) -> tuple[bool, int]:
        plain = key.partition("@")[0].lower().replace("-", "_")
        return "@" in key, order.index(plain) if plain in order else len(order)

    return [metric(key, references) for key in sorted(keys, key=rank)]


def primary(metrics: list[Metric]) -> Metric | None:
    """The metric that methods are ranked by: PSNR, or else the first one whose better side is known."""
    return next((m for m in metrics if m.better is not None), None)


def number(value: float | None, digits: int) -> str:
    """A value with so many digits after the point; infinity and nothing have their own signs."""
    if value is None or math.isnan(value):
        return "\u2013"
    if math.isinf(value):
        return "\u221e" if value > 0 else "\u2212\u221e"
    text = f"{value:.{digits}f}"
    return "\u2212" + text[1:] if text.startswith("-") and float(text) else text.removeprefix("-")


def sentence_case(text: str) -> str:
    """The text with a capital at its beginning."""
    return text[:1].upper() + text[1:]


def budget_text(budget: float | None) -> str:
    """A budget as an acceleration: `2.5x` with the proper sign."""
    return "\u2013" if budget is None else f"{budget:g}\u00d7"
