"""One call of a pipeline: frames, and the seconds of each stage."""

import inspect
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tapvideo.config import ConfigError, GenerateConfig
from tapvideo.images import read_images
from tapvideo.video_io import Sound

_NOT_FOR_CALL = ("image", "last_image", "output_type", "return_dict", "latents", "timesteps", "sigmas")
_NOT_FOR_CALL += ("num_videos_per_prompt", "num_images_per_prompt", "prompt_template", "prompt_2", "negative_prompt_2")
_NOT_FOR_CALL += ("prompt_attention_mask", "negative_prompt_attention_mask")
_NEVER_FOR_CALL = ("embeds", "_kwargs", "callback_", "ip_adapter", "crops_coords", "original_size")
"""Parts of names whose values no yaml can write."""


class RunFailed(RuntimeError):
    """A run that must not go on; the message says what happened, on which step."""


@runtime_checkable
class VideoPipeline(Protocol):
    """What is used of a diffusers text-to-video pipeline."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Make videos."""
        ...

    @property
    def components(self) -> dict[str, Any]:
        """Models, tokenizer and scheduler by name."""
        ...


@dataclass(frozen=True, slots=True)
class StageSeconds:
    """Wall-clock seconds of the stages of one call."""

    text: float
    """Until the first transformer call: text encoder, and the initial noise."""
    denoise: float
    """From the first transformer call to the last scheduler step."""
    vae: float
    """From there until the frames are on the host."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A clip, and what it took."""

    frames: Float[Tensor, "frames height width 3"]
    """Values in [0, 1], on the host; none on a rank that does not decode."""
    latents: Float[Tensor, " b *latent"]
    """Where the denoising loop ended, on its device, as the pipeline has them."""
    seconds: StageSeconds
    sound: Sound | None = None
    """Where the pipeline makes one, and the frames are here."""


@dataclass(slots=True)
class _Clock:
    """Points in time at which the device had finished what it was given."""

    synchronize: Callable[[], None]
    marks: dict[str, float] = field(default_factory=dict)

    def mark(self, name: str) -> None:
        self.synchronize()
        self.marks[name] = time.perf_counter()

    def mark_first(self, name: str) -> None:
        if name not in self.marks:
            self.mark(name)

    def seconds(self) -> StageSeconds:
        begin, denoise, vae, end = (self.marks[name] for name in ("begin", "denoise", "vae", "end"))
        return StageSeconds(text=denoise - begin, denoise=vae - denoise, vae=end - vae)


def sample(
    pipe: VideoPipeline,
    config: GenerateConfig,
    prompt: str,
    seed: int,
    on_step: Callable[[int], None],
    *,
    decode: bool = True,
    on_latents: Callable[[Tensor], None] = lambda latents: None,
) -> Sample:
    """Run the plain pipeline once; its own call makes the frames, bit for bit what it makes without tapvideo.

    Args:
        pipe: what makes them.
        config: how.
        prompt: what to show.
        seed: of the noise.
        on_step: is told the index of every step that is done.
        decode: off where another rank makes the frames, from the same latents.
        on_latents: is shown the latents after every step.

    Raises:
        RunFailed: if the latents are NaN or infinite. Frames, which not every rank has, are for `check_frames`.
    """
    device = next(p.device for m in pipe.components.values() if isinstance(m, nn.Module) for p in m.parameters())
    last: list[Tensor] = []
    clock = _Clock(lambda: torch.cuda.synchronize(device) if device.type == "cuda" else None)

    def end_step(step: int, latents: Tensor) -> None:
        check_finite(latents, step, config.steps)
        on_latents(latents)
        on_step(step)
        if step == config.steps - 1:
            last.append(latents)
            clock.mark("vae")

    transformers = [m for name, m in pipe.components.items() if name.startswith("transformer") and m is not None]
    hooks = [m.register_forward_pre_hook(lambda *_: clock.mark_first("denoise")) for m in transformers]
    try:
        clock.mark("begin")
        arguments = call_arguments(config, type(pipe), prompt, seed)
        with watched(pipe, end_step) as watching:
            made = pipe(**arguments, **watching, output_type="pt" if decode else "latent")
        frames = _frames(made, is_image=config.kind.makes_images) if decode else _no_frames(config)
        sound = _sound(pipe, made) if decode else None
        clock.mark("end")
    finally:
        for hook in hooks:
            hook.remove()
    return Sample(frames, last[0], clock.seconds(), sound)


@contextmanager
def watched(pipe: Any, end_step: Callable[[int, Tensor], None]) -> Iterator[dict[str, Any]]:
    """Further arguments for the pipeline's call, so that `end_step` is told the latents after every step.

    Where the call takes no callback, the pipeline's own scheduler tells, for the length of the block.
    """

    def told(_pipe: Any, step: int, _timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        end_step(step, tensors["latents"])
        return {}

    if "callback_on_step_end" in _accepted(type(pipe)):
        yield {"callback_on_step_end": told}
        return
    scheduler, steps = pipe.scheduler, count()
    original, own = scheduler.step, vars(scheduler).get("step")

    def step(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        end_step(next(steps), result[0])
        return result

    scheduler.step = step
    try:
        yield {}
    finally:
        if own is None:
            del scheduler.step  # of this object: the class's own is in sight again
        else:
            scheduler.step = own


def _frames(made: Any, *, is_image: bool) -> Float[Tensor, "frames height width 3"]:
    """Of what a pipeline gave out; a picture is one frame."""
    frames = made.images[:1] if is_image else made.frames[0]
    return frames.permute(0, 2, 3, 1).float().cpu()


def _sound(pipe: Any, made: Any) -> Sound | None:
    """Of what a pipeline gave out, if there is sound in it."""
    waves = getattr(made, "audio", None)
    return None if waves is None else Sound(waves[0].float().cpu(), int(pipe.vocoder.config.output_sampling_rate))


def _no_frames(config: GenerateConfig) -> Tensor:
    return torch.empty(0, config.height, config.width, 3)


def call_arguments(config: GenerateConfig, kind: type, prompt: str, seed: int) -> dict[str, Any]:
    """Arguments of the call of a pipeline of this class, as far as it knows them.

    Noise comes from the CPU, so that a seed means the same on every device.
    """
    accepted = _accepted(kind)
    return {name: value for name, value in _all_arguments(config, prompt, seed).items() if name in accepted}


def check_call(config: GenerateConfig, kind: type) -> None:
    """Refuse further arguments that the pipeline does not take, or that have a key of their own.

    Raises:
        ConfigError: for the first one.
    """
    own = {*_all_arguments(replace(config, model=replace(config.model, call={})), "", 0), *_NOT_FOR_CALL}
    if config.model.boundary is None:
        own.add("guidance_scale_2")  # of a second expert
    free = sorted(n for n in _accepted(kind) - own if not any(part in n for part in _NEVER_FOR_CALL))
    odd = next((name for name in config.model.call if name not in free), None)
    if odd is not None:
        value, allowed = config.model.call[odd], ", ".join(free) or "none"
        raise ConfigError(f"model.call.{odd}={value!r} is no argument of a {kind.__name__}; allowed: {allowed}")


def _accepted(kind: type) -> set[str]:
    return set(inspect.signature(kind.__call__).parameters) - {"self"}


def _all_arguments(config: GenerateConfig, prompt: str, seed: int) -> dict[str, Any]:
    guidance = config.kind.guidance_argument
    return {
        "prompt": prompt,
        "negative_prompt": config.negative_prompt,
        "height": config.height,
        "width": config.width,
        "num_frames": config.num_frames,
        "num_inference_steps": config.steps,
        **({guidance: config.guidance} if guidance else {}),
        "max_sequence_length": config.max_sequence_length,
        "frame_rate": config.fps,
        "generator": torch.Generator("cpu").manual_seed(seed),
        **read_images(config),
        **config.model.call,
    }


def check_frames(made: Sample, seed: int) -> None:
    """Stop a run whose frames are lost; where ranks share a clip, after what they do together.

    Raises:
        RunFailed: if any value is NaN or infinite.
    """
    if not torch.isfinite(made.frames).all():
        raise RunFailed(f"the VAE made NaN or infinite frames from finite latents (seed {seed}); try dtype=float32")
    if made.sound is not None and not torch.isfinite(made.sound.waves).all():
        raise RunFailed(f"the vocoder made NaN or infinite sound (seed {seed}); try dtype=float32")


def check_finite(latents: Float[Tensor, " b *latent"], step: int, num_steps: int) -> None:
    """Stop a run whose latents are lost.

    Raises:
        RunFailed: if any value is NaN or infinite.
    """
    # one pass in a single look: a sum is finite only if all it is of are; if not, it may just have been too much
    if not math.isfinite(latents.sum(dtype=torch.float32).item()) and not torch.isfinite(latents).all():
        raise RunFailed(
            f"NaN or infinite latents after step {step} (of steps 0 to {num_steps - 1}); "
            "try dtype=float32, or tap=off to see whose they are"
        )
