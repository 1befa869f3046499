"""What a clip is of: a prompt, a seed, and how often the seed's noise has been drawn a little otherwise."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Shot:
    """Clips of the same one, un-accelerated or by any method, begin at the same noise."""

    prompt: str
    seed: int
    draw: int = 0
    """0: the seed's own noise, as everybody makes it. Others: that noise, nudged, each in a direction of its own."""

    def as_key(self) -> dict[str, Any]:
        """What the store knows it by."""
        return {"prompt": self.prompt, "seed": self.seed} | ({"draw": self.draw} if self.draw else {})


@contextmanager
def nudged(pipe: Any, shot: Shot, share: float) -> Generator[None]:
    """Have a pipeline begin at a shot's noise.

    Args:
        pipe: a diffusers pipeline; its `prepare_latents` is wrapped, of this object, for the length of the block.
        shot: which noise.
        share: standard deviation of what is added to it, over its own; the sum is scaled back to the noise's.
    """
    if not shot.draw:
        yield
        return
    original, own = pipe.prepare_latents, vars(pipe).get("prepare_latents")
    generator = torch.Generator("cpu").manual_seed(shot.seed)

    def prepare(*args: Any, **kwargs: Any) -> Any:
        made = original(*args, **kwargs)
        if isinstance(made, tuple):  # with what an image has become, or the places of packed latents
            return nudge(made[0], generator, shot.draw, share), *made[1:]
        return nudge(made, generator, shot.draw, share)

    pipe.prepare_latents = prepare
    try:
        yield
    finally:
        if own is None:
            del pipe.prepare_latents  # of this object: the class's own is in sight again
        else:
            pipe.prepare_latents = own


def nudge(
    noise: Float[Tensor, " b *latent"], generator: torch.Generator, draw: int, share: float
) -> Float[Tensor, " b *latent"]:
    """Noise of the same distribution, a share of its standard deviation away; with a picture in it, that too.

    Args:
        noise: to begin from.
        generator: of the seed; the noise itself may be its first draw, which is passed over.
        draw: which one after that.
        share: of the noise's standard deviation.
    """
    *_, added = [torch.randn(noise.shape, generator=generator) for _ in range(draw + 1)]
    scaled = noise.float() + share * noise.float().std() * added.to(noise.device)
    return (scaled / (1 + share**2) ** 0.5).to(noise.dtype)
