"""Tiny CogVideoX transformers with random weights, and a denoising loop with guidance as their pipelines have it."""

import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed

HEADS, HEAD_DIM, CHANNELS, TEXT, TEXT_DIM = 6, 16, 4, 7, 8

# What the checkpoints' config.json change of the class's defaults, at their hub ids; widths and depths aside.
VARIANTS = {
    "2b": {},  # THUDM/CogVideoX-2b: positions are added to the tokens
    "5b": {"use_rotary_positional_embeddings": True},  # THUDM/CogVideoX-5b
    "5b-i2v": {  # THUDM/CogVideoX-5b-I2V
        "use_rotary_positional_embeddings": True,
        "use_learned_positional_embeddings": True,
        "in_channels": 2 * CHANNELS,
    },
    "1.5": {  # THUDM/CogVideoX1.5-5B
        "use_rotary_positional_embeddings": True,
        "patch_size_t": 2,
        "patch_bias": False,
        "sample_frames": 13,
    },
    "1.5-i2v": {  # THUDM/CogVideoX1.5-5B-I2V
        "use_rotary_positional_embeddings": True,
        "patch_size_t": 2,
        "patch_bias": False,
        "sample_frames": 13,
        "ofs_embed_dim": 8,
        "in_channels": 2 * CHANNELS,
    },
}
TOKENS = {name: 70 if "patch_size_t" in changes else 105 for name, changes in VARIANTS.items()}


def random_transformer(variant="5b", num_layers=3, **changes):
    """Latents of 3 frames (4 in 1.5, which takes two together) of 10 x 14."""
    torch.manual_seed(0)
    config = {
        "num_attention_heads": HEADS,
        "attention_head_dim": HEAD_DIM,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "time_embed_dim": 8,
        "text_embed_dim": TEXT_DIM,
        "num_layers": num_layers,
        "sample_width": 14,
        "sample_height": 10,
        "sample_frames": 9,
        "max_text_seq_length": TEXT,
    }
    transformer = CogVideoXTransformer3DModel(**config | VARIANTS[variant] | changes).eval()
    with torch.no_grad():  # learned positions begin as zeros in checkpoints that nobody has trained
        for name, value in transformer.named_buffers():
            if "pos_embedding" in name and transformer.config.use_learned_positional_embeddings:
                value.normal_()
    return transformer


def noise(transformer, batch=1, seed=0):
    frames = 4 if transformer.config.patch_size_t else 3
    return torch.randn(batch, frames, CHANNELS, 10, 14, generator=torch.Generator().manual_seed(seed))


def inputs(transformer, latents, timestep, *, is_guided=True):
    """Arguments of a call; with guidance the batch is doubled, as all pipelines of CogVideoX do."""
    config, copies = transformer.config, 2 if is_guided else 1
    generator = torch.Generator().manual_seed(100)
    batch = len(latents)
    text = torch.randn(2 * batch, TEXT, TEXT_DIM, generator=generator)[: copies * batch]
    image = torch.randn(latents.shape, generator=generator)
    latents = torch.cat([latents] * copies)
    if config.in_channels > CHANNELS:
        latents = torch.cat([latents, torch.cat([image] * copies)], 2)
    rotary = None
    if config.use_rotary_positional_embeddings:
        frames = latents.shape[1] // (config.patch_size_t or 1)
        rotary = get_3d_rotary_pos_embed(HEAD_DIM, ((0, 0), (5, 7)), (5, 7), frames)
    return {
        "hidden_states": latents.to(transformer.dtype),
        "encoder_hidden_states": text.to(transformer.dtype),
        "timestep": torch.full((len(latents),), timestep),
        "ofs": None if config.ofs_embed_dim is None else latents.new_full((1,), 2.0),
        "image_rotary_emb": rotary,
    }


@torch.no_grad()
def denoise(transformer, *, steps=12, batch=1, is_guided=True, seed=0, branch="cond_uncond"):
    """Final latents of a plain Euler loop."""
    latents = noise(transformer, batch, seed)
    for step in range(steps):
        arguments = inputs(transformer, latents, 1000 - 1000 * step // steps, is_guided=is_guided)
        with transformer.cache_context(branch, step_index=step, num_inference_steps=steps):
            velocity = transformer(**arguments, return_dict=False)[0].float()
        if is_guided:
            uncond, cond = velocity.chunk(2)
            velocity = uncond + 3 * (cond - uncond)
        latents = latents - velocity / steps
    return latents
