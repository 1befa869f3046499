"""Tiny random pipelines of every class, saved as `save_pretrained` does, with tokenizers and text encoders."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTXPipeline,
    WanImageToVideoPipeline,
    WanPipeline,
)
from ltx2_random import random_pipeline as random_ltx2
from ltx_random import random_scheduler, random_vae
from ltx_random import random_transformer as random_ltx
from pipelines_images import BUILDERS as IMAGES
from pipelines_parts import clip, hunyuan_vae, llama, t5, tokenizer, umt5, vision, wan_scheduler, wan_vae
from pipelines_videos import BUILDERS as VIDEOS
from wan_random import random_transformer as random_wan


def _ltx() -> Any:
    return LTXPipeline(
        tokenizer=tokenizer(), text_encoder=t5(), transformer=random_ltx(), vae=random_vae(),
        scheduler=random_scheduler(),
    )  # fmt: skip


def _ltx2() -> Any:
    return random_ltx2(tokenizer())


def _ltx_timestep_vae() -> Any:
    """As LTX-Video 0.9.1 and later: the VAE's decoder takes a timestep."""
    pipe = _ltx()
    vae = random_vae(timestep_conditioning=True, decoder_inject_noise=(True, False, False, False, False))
    return LTXPipeline(**{**pipe.components, "vae": vae})


def _hunyuan() -> Any:
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1, num_single_layers=2,
        num_refiner_layers=1, patch_size=2, patch_size_t=1, guidance_embeds=True, text_embed_dim=8,
        pooled_projection_dim=6, rope_axes_dim=(4, 6, 6),
    )  # fmt: skip
    return HunyuanVideoPipeline(
        text_encoder=llama(), tokenizer=tokenizer(), transformer=transformer.eval(), vae=hunyuan_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0), text_encoder_2=clip(), tokenizer_2=tokenizer(),
    )  # fmt: skip


def _cogvideox(kind: Any = CogVideoXPipeline, snr_shift: float = 3.0, **changes: Any) -> Any:
    config = {
        "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "time_embed_dim": 8,
        "text_embed_dim": 12, "num_layers": 2, "sample_width": 4, "sample_height": 4, "sample_frames": 9,
        "max_text_seq_length": 16,
    }  # fmt: skip
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
    )  # fmt: skip
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, clip_sample=False, timestep_spacing="trailing",
        snr_shift_scale=snr_shift,
    )  # fmt: skip
    transformer = CogVideoXTransformer3DModel(**config | changes).eval()
    return kind(tokenizer=tokenizer(), text_encoder=t5(), vae=vae.eval(), transformer=transformer, scheduler=scheduler)


def _cogvideox_rotary() -> Any:
    return _cogvideox(snr_shift=1.0, use_rotary_positional_embeddings=True)


def _cogvideox_image() -> Any:
    both = {"use_rotary_positional_embeddings": True, "use_learned_positional_embeddings": True}
    return _cogvideox(CogVideoXImageToVideoPipeline, snr_shift=1.0, in_channels=8, **both)


def _wan_parts(flow_shift: float = 3.0) -> dict[str, Any]:
    parts = {"tokenizer": tokenizer(), "text_encoder": umt5(), "vae": wan_vae()}
    return {**parts, "scheduler": wan_scheduler(flow_shift)}


def _wan_i2v(flow_shift: float = 3.0, **changes: Any) -> Any:
    encoder, processor = vision()
    return WanImageToVideoPipeline(
        transformer=random_wan(in_channels=12, image_dim=8, added_kv_proj_dim=32, **changes), image_processor=processor,
        image_encoder=encoder, **_wan_parts(flow_shift),
    )  # fmt: skip


def _wan_flf() -> Any:
    """First and last frame: 2 x 5 image tokens have positions of their own, as in Wan2.1-FLF2V-14B-720P-diffusers."""
    return _wan_i2v(16.0, pos_embed_seq_len=10)


def _wan22(kind: Any = WanPipeline, boundary: float = 0.875, **changes: Any) -> Any:
    """Two experts."""
    experts = {"transformer": random_wan(seed=0, **changes), "transformer_2": random_wan(seed=7, **changes)}
    return kind(**experts, boundary_ratio=boundary, **_wan_parts())


def _wan22_i2v() -> Any:
    return _wan22(WanImageToVideoPipeline, boundary=0.9, in_channels=12)


def _wan22_ti2v() -> Any:
    return WanPipeline(transformer=random_wan(), expand_timesteps=True, **_wan_parts(5.0))


BUILDERS = {
    "ltx": _ltx,
    "ltx_timestep_vae": _ltx_timestep_vae,
    "ltx2": _ltx2,
    "hunyuan": _hunyuan,
    "cogvideox_2b": _cogvideox,
    "cogvideox_5b": _cogvideox_rotary,
    "cogvideox_i2v": _cogvideox_image,
    "wan_i2v": _wan_i2v,
    "wan_flf": _wan_flf,
    "wan22": _wan22,
    "wan22_i2v": _wan22_i2v,
    "wan22_ti2v": _wan22_ti2v,
    **VIDEOS,
    **IMAGES,
}


# yamls whose weights a tiny pipeline of the same name stands for
MODELS = (
    "ltx", "ltx2", "hunyuan", "cogvideox_2b", "cogvideox_5b", "wan_i2v", "wan22", "wan22_i2v", "wan22_ti2v",
    "hunyuan_i2v", "hunyuan15", "hunyuan15_i2v", "mochi", "skyreels", "skyreels_i2v", "flux", "qwen_image", "cogview4",
)  # fmt: skip
WITH_IMAGE = ("wan_i2v", "wan22_i2v", "hunyuan_i2v", "hunyuan15_i2v", "skyreels_i2v")
FRAMES = {"mochi": 13, "flux": 1, "qwen_image": 1, "cogview4": 1}
"""Where it is not 9."""


def save(name: str, folder: Path) -> Path:
    """One of them on disk."""
    torch.manual_seed(0)
    BUILDERS[name]().save_pretrained(folder)
    return folder
