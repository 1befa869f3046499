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
    sigmas: str = "scheduler"
    """What it hands its scheduler: nothing (`scheduler`), sigmas from 1 to 1/steps (`linear`; `linear_unless_flow`: not
    where the scheduler makes flow sigmas), Mochi's (`quadratic`), or whole timesteps and their sigmas (`whole`)."""
    own_shift: bool = False
    """Whether the flow shift follows from the number of tokens, as the scheduler beside the weights says."""
    guidance: str = "guidance"
    """What switches guidance on above 1: `guidance`, or the key of `model.call` where that one is an embedding."""
    guidance_argument: str | None = "guidance_scale"
    """What its call names `guidance`; None where a component of its own, the guider, is told."""
    scales: tuple[tuple[str, float], ...] = ()
    """Further scales of guidance among the arguments of its call (`audio_..` is the sound's), and the value above which
    every step has one more branch for it."""
    pads_frames: bool = False
    """Whether latent frames that do not fill a patch are filled up, and dropped again."""
    packs: int = 1
    """Rows and columns of latents that it puts into one before the transformer sees them."""
    makes_images: bool = False
    """Whether it makes pictures, and no videos."""
    longest_text: int | None = None
    """Tokens of a prompt that its call takes at most, where it says so only after the weights are loaded."""
    sized_by_image: bool = False
    """Whether height and width follow from the picture, and the call takes none."""

    @property
    def product(self) -> str:
        """What it makes, in a word."""
        return "pictures" if self.makes_images else "videos"

    @property
    def suffix(self) -> str:
        """Of the files with it."""
        return "png" if self.makes_images else "mp4"


_WAN = PipelineKind(  # whose VAE loses visibly in half precision, and is a small part of the time
    schedulers=("unipc", "euler", "model"), multiple=16, vae_dtype="float32", image_class="WanImageToVideoPipeline"
)
_SKYREELS = replace(_WAN, image_class="SkyReelsV2ImageToVideoPipeline")
_LTX = PipelineKind(
    schedulers=("model", "unipc"),
    multiple=32,
    image_class="LTXImageToVideoPipeline",
    is_fused=True,
    sigmas="linear",
    own_shift=True,
)
_HUNYUAN = PipelineKind(
    schedulers=("euler", "unipc", "model"),
    multiple=16,
    vae_dtype="float16",
    sigmas="linear",
    guidance="true_cfg_scale",
)
_HUNYUAN15 = PipelineKind(
    schedulers=("model", "euler", "unipc"), multiple=16, vae_dtype="float16", sigmas="linear", guidance_argument=None
)
_COGVIDEOX = PipelineKind(schedulers=("dpm", "ddim", "model"), multiple=8, is_fused=True, pads_frames=True)
_COGVIDEOX_IMAGE = replace(_COGVIDEOX, image_class="CogVideoXImageToVideoPipeline", needs_image=True)
_MOCHI = PipelineKind(schedulers=("model",), multiple=16, is_fused=True, sigmas="quadratic")
_FLUX = PipelineKind(
    schedulers=("model", "unipc"),
    multiple=16,
    sigmas="linear_unless_flow",
    own_shift=True,
    guidance="true_cfg_scale",
    packs=2,
    makes_images=True,
    longest_text=512,
)
_QWEN = replace(_FLUX, longest_text=1024, sigmas="linear", guidance="guidance", guidance_argument="true_cfg_scale")
_COGVIEW4 = PipelineKind(schedulers=("model",), multiple=32, sigmas="whole", own_shift=True, makes_images=True)

KINDS = {
    "WanPipeline": _WAN,
    "WanImageToVideoPipeline": replace(_WAN, needs_image=True, last_image=True),
    "LTXPipeline": _LTX,
    "LTXImageToVideoPipeline": replace(_LTX, needs_image=True),
    "LTX2Pipeline": replace(
        _LTX, image_class="LTX2ImageToVideoPipeline", scales=(("stg_scale", 0), ("modality_scale", 1))
    ),
    "HunyuanVideoPipeline": _HUNYUAN,
    "HunyuanVideoImageToVideoPipeline": replace(
        _HUNYUAN, image_class="HunyuanVideoImageToVideoPipeline", needs_image=True
    ),
    "HunyuanVideo15Pipeline": _HUNYUAN15,
    "HunyuanVideo15ImageToVideoPipeline": replace(
        _HUNYUAN15, image_class="HunyuanVideo15ImageToVideoPipeline", needs_image=True, sized_by_image=True
    ),
    "CogVideoXPipeline": _COGVIDEOX,
    "CogVideoXImageToVideoPipeline": _COGVIDEOX_IMAGE,
    "MochiPipeline": _MOCHI,
    "SkyReelsV2Pipeline": replace(_SKYREELS, image_class=None),
    "SkyReelsV2ImageToVideoPipeline": replace(_SKYREELS, needs_image=True, last_image=True),
    "FluxPipeline": _FLUX,
    "QwenImagePipeline": _QWEN,
    "CogView4Pipeline": _COGVIEW4,
}
"""By class name."""
