"""Tiny random pipelines that make pictures: FLUX.1, Qwen-Image, CogView4."""

from typing import Any

from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    CogView4Pipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    QwenImagePipeline,
)
from image_random import random_cogview4, random_flux, random_qwen
from pipelines_parts import clip, llama, t5, tokenizer


def _vae() -> Any:
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, sample_size=32,
        scaling_factor=0.36, shift_factor=0.12,
    ).eval()  # fmt: skip


def flux() -> Any:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    transformer = random_flux(in_channels=16, joint_attention_dim=12, pooled_projection_dim=6)
    return FluxPipeline(
        scheduler=scheduler, vae=_vae(), text_encoder=clip(), tokenizer=tokenizer(longest=77), text_encoder_2=t5(),
        tokenizer_2=tokenizer(), transformer=transformer,
    )  # fmt: skip


def qwen() -> Any:
    vae = AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
    )
    return QwenImagePipeline(
        scheduler=scheduler, vae=vae.eval(), text_encoder=llama(), tokenizer=tokenizer(),
        transformer=random_qwen(in_channels=16, out_channels=4, joint_attention_dim=8),
    )  # fmt: skip


def cogview4() -> Any:
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, time_shift_type="linear"
    )
    return CogView4Pipeline(
        tokenizer=tokenizer(), text_encoder=llama(), vae=_vae(), scheduler=scheduler,
        transformer=random_cogview4(in_channels=4, out_channels=4, text_embed_dim=8),
    )  # fmt: skip


BUILDERS = {"flux": flux, "qwen_image": qwen, "cogview4": cogview4}
