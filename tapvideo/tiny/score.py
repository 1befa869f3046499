"""Did the clip come out as its caption says? Judged by colour and geometry alone, with no learned weights."""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from tapvideo.tiny import scenes

_MIN_CORE = 0.002  # of the picture: what a shape of radius 3 keeps when its rim is taken off
_PURE = 0.16  # greatest distance in RGB at which a pixel still counts as a colour
_TRAVEL = 8.0  # pixels of displacement that count as motion; drawn objects travel 22 to 36
_GROWTH = 1.35  # ratio of areas that counts as growth; drawn ones change by more than 2
_DIRECTIONS = ("moving left", "moving right", "moving up", "moving down")


@dataclass(frozen=True, slots=True)
class ClipScore:
    """Which parts of one caption the clip shows; what the caption does not ask is left out."""

    background: bool
    objects: tuple[bool, ...]
    """Per named object: its colour is there."""
    directions: tuple[bool, ...]
    """Per named object that should move left, right, up or down: it is there and moves so."""
    motions: tuple[bool, ...]
    """Per named object: it is there and its motion is as asked, growing, shrinking and standing still included."""


@dataclass(frozen=True, slots=True)
class FolderScore:
    """Shares of right answers over many clips, 0 to 1; None where nothing was asked."""

    background: float | None
    objects: float | None
    directions: float | None
    motions: float | None
    num_clips: int


def score_clip(clip: Float[Tensor, "frames 3 height width"], caption: str) -> ClipScore:
    """Judge a clip with values in [0, 1].

    Raises:
        ValueError: if the caption is not one of the embedded model's world.
    """
    scene = scenes.parse_caption(caption)
    labels = classify_colors(clip)
    names = list(scenes.COLORS)
    areas = torch.stack([(labels == i).float().mean() for i in range(len(names))])
    background = int(areas.argmax())
    found: list[bool] = []
    directions: list[bool] = []
    motions: list[bool] = []
    for obj in scene.objects:
        mask = labels == names.index(obj.color)
        there = names.index(obj.color) != background and is_present(mask)
        found.append(there)
        motion = motion_of(mask) if there else None
        if obj.motion in _DIRECTIONS:
            directions.append(motion == obj.motion)
        motions.append(motion == obj.motion)
    return ClipScore(names[background] == scene.background, tuple(found), tuple(directions), tuple(motions))


def score_folder(scores: list[ClipScore]) -> FolderScore:
    """Shares over all objects and clips."""

    def share(answers: list[bool]) -> float | None:
        return sum(answers) / len(answers) if answers else None

    pooled = {
        f.name: [a for s in scores for a in getattr(s, f.name)] for f in fields(ClipScore) if f.name != "background"
    }
    return FolderScore(
        background=share([s.background for s in scores]),
        num_clips=len(scores),
        **{k: share(v) for k, v in pooled.items()},
    )


def classify_colors(clip: Float[Tensor, "frames 3 height width"]) -> Int64[Tensor, "frames height width"]:
    """Index into `scenes.COLORS` of every pixel, -1 where none is near; a colour reaches from its tone to its shade."""
    pixels = clip.movedim(1, -1)[..., None, :]  # [f, h, w, 1, 3]
    tone = torch.tensor(list(scenes.COLORS.values()))
    span = torch.tensor([scenes.shade(name) for name in scenes.COLORS]) - tone
    along = ((pixels - tone) * span).sum(-1, keepdim=True) / span.square().sum(-1, keepdim=True)
    distance = (pixels - tone - along.clamp(0, 1) * span).norm(dim=-1)
    least, label = distance.min(-1)
    return torch.where(least < _PURE, label, -1)


def is_present(mask: Bool[Tensor, "frames height width"]) -> bool:
    """Whether a colour fills the area of a small shape, not scattered pixels, in most frames."""
    core = -torch.nn.functional.max_pool2d(-mask.float(), 3, stride=1)
    return bool((core.mean((1, 2)) > _MIN_CORE).float().mean() > 0.6)


def motion_of(mask: Bool[Tensor, "frames height width"]) -> str:
    """The motion of a shape from its centre and area in the first and the last fifth of the clip."""
    frames, height, width = mask.shape
    part = max(1, frames // 5)
    (x0, y0, area0), (x1, y1, area1) = (_centre_and_area(m) for m in (mask[:part], mask[-part:]))
    dx, dy = (x1 - x0) * scenes.SIZE / width, (y1 - y0) * scenes.SIZE / height
    if max(abs(dx), abs(dy)) >= _TRAVEL:
        if abs(dx) > abs(dy):
            return "moving right" if dx > 0 else "moving left"
        return "moving down" if dy > 0 else "moving up"
    ratio = area1 / max(area0, 1e-6)
    if ratio > _GROWTH:
        return "growing"
    return "shrinking" if ratio < 1 / _GROWTH else "standing still"


def _centre_and_area(mask: Bool[Tensor, "frames height width"]) -> tuple[float, float, float]:
    weights = mask.float()
    total = weights.sum().clamp_min(1e-6)
    x = (weights * torch.arange(mask.shape[2])).sum() / total
    y = (weights * torch.arange(mask.shape[1])[:, None]).sum() / total
    return x.item(), y.item(), (total / mask.numel()).item()
