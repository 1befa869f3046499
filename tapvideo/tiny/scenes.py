"""Procedurally drawn, captioned clips: the world the embedded model lives in.

A caption names the background and the first one or two objects. Everything else (positions, sizes, speeds, textures,
brightness, drawing order, the look of any "more shapes") is left to chance, so that a generated clip depends on its
noise as much as on its prompt.
"""

import math
import random
import zlib
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

SIZE = 64
FRAMES = 17

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.10, 0.12),
    "green": (0.10, 0.70, 0.20),
    "blue": (0.12, 0.25, 0.92),
    "yellow": (0.98, 0.90, 0.15),
    "purple": (0.58, 0.15, 0.75),
    "orange": (0.98, 0.52, 0.08),
    "white": (0.97, 0.97, 0.97),
    "black": (0.05, 0.05, 0.05),
}
SHAPES = ("circle", "square", "triangle", "star")
MOTIONS = ("moving left", "moving right", "moving up", "moving down", "growing", "shrinking", "standing still")
TEXTURES = ("plain", "striped", "checkered", "cloudy")
COUNT_WORDS = {1: "one more shape", 2: "two more shapes"}

_SOFTNESS = 1.0  # pixels to either side of an edge
_COLOR_NAMES = tuple(COLORS)
_DIRECTIONS = {
    "moving left": (-1.0, 0.0),
    "moving right": (1.0, 0.0),
    "moving up": (0.0, -1.0),
    "moving down": (0.0, 1.0),
}


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One drawn shape: what the caption can say of it."""

    color: str
    shape: str
    motion: str


@dataclass(frozen=True, slots=True)
class Scene:
    """One clip's content; `objects` are named by the caption, `extras` are only counted."""

    objects: tuple[SceneObject, ...]
    extras: tuple[SceneObject, ...]
    background: str
    texture: str


def vocabulary() -> list[str]:
    """Every word that a caption can contain, sorted."""
    words = {"a", "and", "with", "on", "background"}
    for phrase in (*COLORS, *SHAPES, *MOTIONS, *TEXTURES, *COUNT_WORDS.values()):
        words.update(phrase.split())
    return sorted(words)


def caption(scene: Scene) -> str:
    """The scene in words, e.g. ``a red circle moving left on a blue striped background``."""
    named = " and ".join(f"a {o.color} {o.shape} {o.motion}" for o in scene.objects)
    more = f" with {COUNT_WORDS[len(scene.extras)]}" if scene.extras else ""
    return f"{named}{more} on a {scene.background} {scene.texture} background"


def parse_caption(text: str) -> Scene:
    """The scene that `caption` describes; extras come back without their (unsaid) looks.

    Raises:
        ValueError: if the text is not of the captions' grammar.
    """
    try:
        head, tail = text.strip().lower().removesuffix(" background").rsplit(" on a ", 1)
        background, texture = tail.split()
        head, _, more = head.partition(" with ")
        objects = tuple(_parse_object(phrase) for phrase in head.split(" and "))
        num_extras = {words: count for count, words in COUNT_WORDS.items()}[more] if more else 0
        if background not in COLORS or texture not in TEXTURES:
            raise KeyError(tail)
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"not a caption of this world: {text!r}; example: 'a red circle moving left on a blue striped background'"
        ) from error
    unsaid = SceneObject(color="", shape="", motion="")
    return Scene(objects, (unsaid,) * num_extras, background, texture)


def _parse_object(phrase: str) -> SceneObject:
    article, color, shape, motion = phrase.split(" ", 3)
    if article != "a" or color not in COLORS or shape not in SHAPES or motion not in MOTIONS:
        raise KeyError(phrase)
    return SceneObject(color, shape, motion)


def is_held_out(text: str) -> bool:
    """Whether a caption belongs to the tenth of captions that training never sees."""
    return zlib.crc32(text.encode()) % 10 == 0


def sample_scene(rng: random.Random, *, held_out: bool = False) -> Scene:
    """A random scene from the training captions, or from the held-out ones."""
    while True:
        scene = _draw_scene(rng)
        if is_held_out(caption(scene)) is held_out:
            return scene


def _draw_scene(rng: random.Random) -> Scene:
    background = rng.choice(_COLOR_NAMES)
    num_objects = rng.choices((1, 2, 3, 4), weights=(60, 25, 10, 5))[0]
    num_named = 1 if num_objects == 1 or rng.random() < 0.5 else 2
    num_named = max(num_named, num_objects - len(COUNT_WORDS))
    colors = rng.sample([c for c in _COLOR_NAMES if c != background], num_objects)
    objects = [SceneObject(c, rng.choice(SHAPES), rng.choice(MOTIONS)) for c in colors]
    return Scene(tuple(objects[:num_named]), tuple(objects[num_named:]), background, rng.choice(TEXTURES))


def render(
    scenes: list[Scene], generator: torch.Generator, *, size: int = SIZE, frames: int = FRAMES
) -> Float[Tensor, "b 3 frames size size"]:
    """Draw the scenes as clips with values in [-1, 1]; chance (positions, textures, speeds) comes from `generator`."""
    return torch.stack([_render_one(s, generator, size, frames) for s in scenes]) * 2 - 1


def _render_one(
    scene: Scene, generator: torch.Generator, size: int, frames: int
) -> Float[Tensor, "3 frames size size"]:
    centers = torch.arange(size) + 0.5
    y, x = torch.meshgrid(centers, centers, indexing="ij")
    clip = _background(scene, generator, x, y)[:, None].repeat(1, frames, 1, 1)
    crowd = len(scene.objects) + len(scene.extras)
    for obj in (*scene.extras, *reversed(scene.objects)):  # the first named object is drawn last, so it stays in sight
        cover = _object_cover(obj, generator, x, y, frames, crowd)
        brightness = _uniform(generator, 0.85, 1.0)
        clip = clip.lerp(torch.tensor(COLORS[obj.color]).view(3, 1, 1, 1) * brightness, cover)
    return clip


def shade(color: str) -> tuple[float, float, float]:
    """The second tone of a background: darker, or lighter for black."""
    r, g, b = COLORS[color]
    return (0.24, 0.24, 0.24) if color == "black" else (0.7 * r, 0.7 * g, 0.7 * b)


def _background(scene: Scene, generator: torch.Generator, x: Tensor, y: Tensor) -> Float[Tensor, "3 size size"]:
    unit = x.shape[0] / SIZE  # textures scale with the picture
    if scene.texture == "plain":
        mix = torch.full_like(x, _uniform(generator, 0.0, 0.25))
    elif scene.texture == "cloudy":
        mix = _clouds(generator, x.shape[0])
    else:
        angle, period = _uniform(generator, 0, math.pi), _uniform(generator, 14, 28) * unit
        u = (x * math.cos(angle) + y * math.sin(angle)) * 2 * math.pi / period + _uniform(generator, 0, 2 * math.pi)
        v = (y * math.cos(angle) - x * math.sin(angle)) * 2 * math.pi / period + _uniform(generator, 0, 2 * math.pi)
        wave = torch.sin(u) if scene.texture == "striped" else torch.sin(u) * torch.sin(v) * 1.5
        mix = (wave * 0.8 + 0.5).clamp(0, 1)
    base, second = (torch.tensor(c).view(3, 1, 1) for c in (COLORS[scene.background], shade(scene.background)))
    return torch.lerp(base, second, mix)


def _clouds(generator: torch.Generator, size: int) -> Float[Tensor, "size size"]:
    mix = torch.zeros(1, 1, size, size)
    for cells, weight in ((3, 1.0), (6, 0.6), (11, 0.3)):
        noise = torch.randn(1, 1, cells, cells, generator=generator)
        mix += weight * torch.nn.functional.interpolate(noise, size=(size, size), mode="bicubic", align_corners=True)
    return (mix[0, 0] * 0.55 + 0.5).clamp(0, 1)


def _object_cover(
    obj: SceneObject, generator: torch.Generator, x: Tensor, y: Tensor, frames: int, crowd: int
) -> Float[Tensor, "frames size size"]:
    unit = x.shape[0] / SIZE
    time = torch.linspace(-0.5, 0.5, frames).view(frames, 1, 1)
    radius = _uniform(generator, 8, 14) * (1.0 if crowd < 3 else 0.8)
    travel = _uniform(generator, 22, 36)
    dx, dy = _DIRECTIONS.get(obj.motion, (0.0, 0.0))
    margin_x, margin_y = (max(12.0, travel / 2 + 7) if d else 13.0 for d in (dx, dy))
    cx, cy = _uniform(generator, margin_x, SIZE - margin_x), _uniform(generator, margin_y, SIZE - margin_y)
    growth = {"growing": 1.0, "shrinking": -1.0}.get(obj.motion, 0.0) * _uniform(generator, 0.7, 1.1)
    px, py = (cx + travel * dx * time) * unit, (cy + travel * dy * time) * unit
    angle = _uniform(generator, -0.35, 0.35)
    return _shape_cover(obj.shape, x - px, y - py, angle, radius * unit * (1 + growth * time))


def _shape_cover(shape: str, x: Tensor, y: Tensor, angle: float, radius: Tensor) -> Tensor:
    """Coverage in [0, 1] from a signed distance in pixels, soft at the edge as through a lens."""
    u, v = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
    rho, turn = torch.sqrt(u * u + v * v + 1e-6), torch.atan2(u, -v)
    if shape == "circle":
        distance = rho - radius
    elif shape == "square":
        distance = torch.maximum(u.abs(), v.abs()) - 0.85 * radius
    elif shape == "triangle":
        sector = torch.remainder(turn, 2 * math.pi / 3) - math.pi / 3
        distance = rho * torch.cos(sector) - 0.6 * radius
    else:
        distance = _star_distance(rho, turn, 1.2 * radius)
    return (0.5 - distance / (2 * _SOFTNESS)).clamp(0, 1)


def _star_distance(rho: Tensor, turn: Tensor, tip: Tensor, notch: float = 0.42) -> Tensor:
    """Distance to the edge from a tip (radius `tip`) to a notch (radius `notch * tip`) of a five-pointed star."""
    fold = (torch.remainder(turn + math.pi / 5, 2 * math.pi / 5) - math.pi / 5).abs()  # 0 at a tip, pi/5 at a notch
    px, py = rho * torch.cos(fold), rho * torch.sin(fold)
    ex, ey = notch * tip * math.cos(math.pi / 5) - tip, notch * tip * math.sin(math.pi / 5)
    return ((px - tip) * ey - py * ex) / torch.sqrt(ex * ex + ey * ey)


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()
