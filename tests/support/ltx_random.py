"""A tiny `LTXPipeline` with random weights, and helpers around it, for tests."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXImageToVideoPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)

TEXT = 6  # text tokens


def random_transformer(num_layers=3, seed=0, **changes):
    """As `Lightricks/LTX-Video`'s config.json but for sizes: norms without weights, of q and k across heads."""
    torch.manual_seed(seed)
    config = {
        "in_channels": 8,
        "out_channels": 8,
        "patch_size": 1,
        "patch_size_t": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "cross_attention_dim": 32,
        "num_layers": num_layers,
        "caption_channels": 12,
        "qk_norm": "rms_norm_across_heads",
        "norm_elementwise_affine": False,
    }
    sizes = config | changes
    sizes["cross_attention_dim"] = sizes["num_attention_heads"] * sizes["attention_head_dim"]
    return LTXVideoTransformer3DModel(**sizes).eval()


def random_vae(**changes):
    """Strides of 4 frames and 8 x 8 pixels."""
    torch.manual_seed(1)
    config = {
        "latent_channels": 8,
        "block_out_channels": (8, 8, 8, 8),
        "decoder_block_out_channels": (8, 8, 8, 8),
        "layers_per_block": (1, 1, 1, 1, 1),
        "decoder_layers_per_block": (1, 1, 1, 1, 1),
        "spatio_temporal_scaling": (True, True, False, False),
        "decoder_spatio_temporal_scaling": (True, True, False, False),
        "decoder_inject_noise": (False,) * 5,
        "upsample_residual": (False,) * 4,
        "upsample_factor": (1,) * 4,
        "timestep_conditioning": False,
        "patch_size": 2,
        "patch_size_t": 1,
        "encoder_causal": True,
        "decoder_causal": False,
    }
    return AutoencoderKLLTXVideo(**config | changes).eval()


def random_scheduler():
    """As the one beside the weights of `Lightricks/LTX-Video`: the shift follows from the number of tokens."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        shift_terminal=0.1,
    )


def random_pipeline(*, image=False, **changes):
    """No text encoder: prompts come as embeddings."""
    parts: dict[str, Any] = {
        "tokenizer": None,
        "text_encoder": None,
        "transformer": random_transformer(**changes),
        "vae": random_vae(),
        "scheduler": random_scheduler(),
    }
    pipe = (LTXImageToVideoPipeline if image else LTXPipeline)(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def denoise(pipe, *, steps=16, batch=1, guidance=3.0, frames=9, size=32, width=None, seed=0, **extra):
    """Final latents of a run; of the text, the last tokens are masked."""
    generator = torch.Generator().manual_seed(100)
    dtype = pipe.transformer.dtype
    prompt, negative = torch.randn(2, batch, TEXT, 12, generator=generator).to(dtype)
    mask, negative_mask = (torch.arange(TEXT).expand(batch, -1) < real for real in (4, 2))
    return pipe(
        prompt_embeds=prompt,
        negative_prompt_embeds=negative,
        prompt_attention_mask=mask,
        negative_prompt_attention_mask=negative_mask,
        height=size,
        width=width or size,
        num_frames=frames,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
        **extra,
    ).frames


def call_inputs(step, *, tokens=(3, 4, 4), batch=2, per_token=False, dtype=torch.float32):
    """Arguments of one transformer call: packed latents, text with a mask, timesteps of clips or of tokens."""
    generator = torch.Generator().manual_seed(step)
    t, h, w = tokens
    latents = torch.randn(batch, t * h * w, 8, generator=generator, dtype=dtype)
    text = torch.randn(batch, TEXT, 12, generator=torch.Generator().manual_seed(99), dtype=dtype)
    timestep = torch.full((batch,), 1000.0 - 10 * step)
    if per_token:  # as image to video: the first frame is clean
        timestep = timestep[:, None].repeat(1, t * h * w)
        timestep[:, : h * w] = 0
    return {
        "hidden_states": latents,
        "encoder_hidden_states": text,
        "timestep": timestep,
        "encoder_attention_mask": torch.arange(TEXT).expand(batch, -1) < torch.tensor([[4], [2]])[:batch],
        "num_frames": t,
        "height": h,
        "width": w,
        "rope_interpolation_scale": (8 / 25, 32, 32),
        "return_dict": False,
    }
