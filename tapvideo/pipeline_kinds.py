"""What must be known of diffusers' pipeline classes before one is loaded: facts alone, no diffusers."""

from dataclasses import dataclass, replace

SCHEDULERS = {
    "unipc": "UniPC",
    "euler": "Euler",
    "model": "own-scheduler",
    "ddim": "DDIM",
    "dpm": "DPM-Solver++",
}
"""Names of schedulers, and what reports call them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineKind:
    """One pipeline class."""

    schedulers: tuple[str, ...]
    """Those that go with it; a comparison takes the first two."""
    multiple: int
    """Of height and width, whatever the model's patches and the VAE's strides are."""
    vae_dtype: str = "same"
    """`float32`, `float16` (where the rest is of half precision too), or `same` as the rest, which some pipelines need:
    they hand latents to the VAE as they are."""
    image_class: str | None = None
    """The class that makes videos from an image with the same weights."""
    needs_image: bool = False
    """Whether nothing is made without one."""
    last_image: bool = False
    """Whether a last frame may be given too."""
    is_fused: bool = False
    """Whether both branches of guidance are one call of twice the batch."""
    own_sigmas: bool = False
    """Whether it hands its scheduler sigmas from 1 to 1/steps, which the scheduler then shifts."""
    own_shift: bool = False
    """Whether the flow shift follows from the number of tokens, as the scheduler beside the weights says."""
    guidance: str = "guidance"
    """What switches guidance on above 1: `guidance`, or the key of `model.call` where that one is an embedding."""
    pads_frames: bool = False
    """Whether latent frames that do not fill a patch are filled up, and dropped again."""


_WAN = PipelineKind(  # whose VAE loses visibly in half precision, and is a small part of the time
    schedulers=("unipc", "euler", "model"), multiple=16, vae_dtype="float32", image_class="WanImageToVideoPipeline"
)
_LTX = PipelineKind(
    schedulers=("model", "unipc"),
    multiple=32,
    image_class="LTXImageToVideoPipeline",
    is_fused=True,
    own_sigmas=True,
    own_shift=True,
)
_HUNYUAN = PipelineKind(
    schedulers=("euler", "unipc", "model"),
    multiple=16,
    vae_dtype="float16",
    own_sigmas=True,
    guidance="true_cfg_scale",
)
_COGVIDEOX = PipelineKind(schedulers=("dpm", "ddim", "model"), multiple=8, is_fused=True, pads_frames=True)
_COGVIDEOX_IMAGE = replace(_COGVIDEOX, image_class="CogVideoXImageToVideoPipeline", needs_image=True)

KINDS = {
    "WanPipeline": _WAN,
    "WanImageToVideoPipeline": replace(_WAN, needs_image=True, last_image=True),
    "LTXPipeline": _LTX,
    "LTXImageToVideoPipeline": replace(_LTX, needs_image=True),
    "HunyuanVideoPipeline": _HUNYUAN,
    "CogVideoXPipeline": _COGVIDEOX,
    "CogVideoXImageToVideoPipeline": _COGVIDEOX_IMAGE,
}
"""By class name."""
