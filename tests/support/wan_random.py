"""A tiny `WanPipeline` with random weights, and helpers around it, for tests."""

from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

WAN = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 8,
    "freq_dim": 16,
    "ffn_dim": 32,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 32,
}


def random_transformer(num_layers=3, seed=0, **changes):
    """Random weights large enough that every token and step differs."""
    torch.manual_seed(seed)
    return WanTransformer3DModel(**WAN | {"num_layers": num_layers} | changes).eval()


def random_pipeline(**changes):
    """No text encoder: prompts come as embeddings."""
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    torch.manual_seed(1)
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    parts: dict[str, Any] = {  # the pipeline's annotations know neither None nor this scheduler
        "tokenizer": None,
        "text_encoder": None,
        "transformer": random_transformer(**changes),
        "vae": vae.eval(),
        "scheduler": scheduler,
    }
    pipe = WanPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def denoise(pipe, *, steps=16, batch=1, guidance=5.0, frames=9, size=32, width=None, seed=0, **extra):
    """Final latents of a run."""
    generator = torch.Generator().manual_seed(100)
    dtype = pipe.transformer.dtype
    prompt, negative = torch.randn(2, batch, 6, 8, generator=generator).to(dtype)
    return pipe(
        prompt_embeds=prompt,
        negative_prompt_embeds=negative,
        height=size,
        width=width or size,
        num_frames=frames,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
        **extra,
    ).frames
