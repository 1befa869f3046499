"""Tiny HunyuanVideo transformers with random weights, and a denoising loop as their pipelines have it."""

import torch
from diffusers import HunyuanVideoTransformer3DModel

HEADS, HEAD_DIM, CHANNELS, TEXT, TEXT_DIM, POOLED = 6, 16, 4, 7, 8, 6

# What the checkpoints' config.json change of the class's defaults, at their hub ids; widths and depths aside.
VARIANTS = {
    "t2v": {},  # hunyuanvideo-community/HunyuanVideo: guidance is embedded
    "i2v-latents": {  # hunyuanvideo-community/HunyuanVideo-I2V-33ch: image and mask as further channels
        "guidance_embeds": False,
        "image_condition_type": "latent_concat",
        "in_channels": 2 * CHANNELS + 1,
    },
    "i2v-tokens": {"image_condition_type": "token_replace"},  # hunyuanvideo-community/HunyuanVideo-I2V
}


def random_transformer(variant="t2v", num_layers=2, num_single_layers=2, **changes):
    """Latents of 3 frames of 10 x 14 make 105 tokens."""
    torch.manual_seed(0)
    config = {
        "num_attention_heads": HEADS,
        "attention_head_dim": HEAD_DIM,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "num_layers": num_layers,
        "num_single_layers": num_single_layers,
        "num_refiner_layers": 1,
        "text_embed_dim": TEXT_DIM,
        "pooled_projection_dim": POOLED,
        "rope_axes_dim": (4, 6, 6),
    }
    return HunyuanVideoTransformer3DModel(**config | VARIANTS[variant] | changes).eval()


def noise(transformer, batch=1, seed=0):
    return torch.randn(batch, CHANNELS, 3, 10, 14, generator=torch.Generator().manual_seed(seed))


def inputs(transformer, latents, timestep, branch="cond"):
    """Arguments of a call; prompts are of different lengths, and padded."""
    config, batch = transformer.config, len(latents)
    generator = torch.Generator().manual_seed(100 if branch == "cond" else 101)
    text = torch.randn(batch, TEXT, TEXT_DIM, generator=generator)
    pooled = torch.randn(batch, POOLED, generator=generator)
    image = torch.randn(batch, config.in_channels - CHANNELS, *latents.shape[2:], generator=generator)
    lengths = torch.tensor([TEXT - 3, TEXT, 2])[:batch, None]
    if config.image_condition_type == "token_replace":
        latents = latents.clone()
        latents[:, :, 0] = torch.randn(latents[:, :, 0].shape, generator=torch.Generator().manual_seed(9))
    return {
        "hidden_states": torch.cat([latents, image], 1).to(transformer.dtype),
        "timestep": torch.full((batch,), timestep),
        "encoder_hidden_states": text.to(transformer.dtype),
        "encoder_attention_mask": (torch.arange(TEXT) < lengths).long(),
        "pooled_projections": pooled.to(transformer.dtype),
        "guidance": torch.full((batch,), 6000.0) if config.guidance_embeds else None,
    }


@torch.no_grad()
def denoise(transformer, *, steps=12, batch=1, branches=("cond",), seed=0):
    """Final latents of a plain Euler loop; two branches are true guidance, beside the embedded one."""
    latents = noise(transformer, batch, seed)
    for step in range(steps):
        outputs = []
        for branch in branches:
            arguments = inputs(transformer, latents, 1000 - 1000 * step // steps, branch)
            with transformer.cache_context(branch, step_index=step, num_inference_steps=steps):
                outputs.append(transformer(**arguments, return_dict=False)[0].float())
        velocity = outputs[0] if len(outputs) == 1 else outputs[1] + 3 * (outputs[0] - outputs[1])
        latents = latents - velocity / steps
    return latents
