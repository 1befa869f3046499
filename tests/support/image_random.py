"""Tiny FLUX, Qwen-Image and CogView4 transformers with random weights, called as their pipelines call them."""

import torch
from diffusers import CogView4Transformer2DModel, FluxTransformer2DModel, QwenImageTransformer2DModel

ROWS, COLUMNS, TEXT = 9, 11, 7  # 99 tokens
CHANNELS, TEXT_DIM, POOLED = 8, 10, 6


def random_flux(**changes):
    """As `black-forest-labs/FLUX.1-dev`'s config.json but for sizes: guidance is embedded."""
    torch.manual_seed(0)
    config = {
        "in_channels": CHANNELS,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 6,
        "joint_attention_dim": TEXT_DIM,
        "pooled_projection_dim": POOLED,
        "guidance_embeds": True,
        "axes_dims_rope": (4, 6, 6),
    }
    return FluxTransformer2DModel(**config | changes).eval()


def random_qwen(**changes):
    """As `Qwen/Qwen-Image`'s config.json but for sizes."""
    torch.manual_seed(0)
    config = {
        "in_channels": CHANNELS,
        "out_channels": CHANNELS // 4,
        "num_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 6,
        "joint_attention_dim": TEXT_DIM,
        "axes_dims_rope": (4, 6, 6),
    }
    return QwenImageTransformer2DModel(**config | changes).eval()


def random_cogview4(**changes):
    """As `THUDM/CogView4-6B`'s config.json but for sizes."""
    torch.manual_seed(0)
    config = {
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "num_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 6,
        "text_embed_dim": TEXT_DIM,
        "time_embed_dim": 12,
        "condition_dim": 4,
        "rope_axes_dim": (16, 16),
    }
    return CogView4Transformer2DModel(**config | changes).eval()


def cogview4_noise(transformer):
    return torch.randn(1, CHANNELS, 2 * ROWS, 2 * COLUMNS, generator=torch.Generator().manual_seed(1))


def cogview4_inputs(transformer, latents, timestep, branch):
    """Sizes and crop are further conditions."""
    size = torch.tensor([[8.0 * latents.shape[2], 8.0 * latents.shape[3]]])
    return {
        "hidden_states": latents,
        "encoder_hidden_states": _text(branch),
        "timestep": torch.tensor([timestep]),
        "original_size": size,
        "target_size": size,
        "crop_coords": torch.zeros(1, 2),
    }


def noise(transformer):
    return torch.randn(1, ROWS * COLUMNS, CHANNELS, generator=torch.Generator().manual_seed(1))


def _text(branch):
    return torch.randn(1, TEXT, TEXT_DIM, generator=torch.Generator().manual_seed(3 if branch == "cond" else 4))


def flux_inputs(transformer, latents, timestep, branch):
    """Timesteps from 1 to 0; position ids of text are zeros."""
    rows, columns = torch.meshgrid(torch.arange(ROWS), torch.arange(COLUMNS), indexing="ij")
    ids = torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1).float()
    return {
        "hidden_states": latents,
        "timestep": torch.tensor([timestep / 1000]),
        "guidance": torch.tensor([3.5]) if transformer.config.guidance_embeds else None,
        "pooled_projections": _text(branch)[:, 0, :POOLED],
        "encoder_hidden_states": _text(branch),
        "txt_ids": torch.zeros(TEXT, 3),
        "img_ids": ids,
    }


def qwen_inputs(transformer, latents, timestep, branch):
    """Prompts are of different lengths, and padded."""
    length = TEXT if branch == "cond" else TEXT - 3
    return {
        "hidden_states": latents,
        "timestep": torch.tensor([timestep / 1000]),
        "encoder_hidden_states": _text(branch),
        "encoder_hidden_states_mask": (torch.arange(TEXT) < length)[None],
        "img_shapes": [[(1, ROWS, COLUMNS)]],
    }


def qwen_edit_inputs(transformer, latents, timestep, branch):
    """An image to edit comes behind the one that is made, at timestep 0."""
    image = torch.randn(1, 5 * 6, CHANNELS, generator=torch.Generator().manual_seed(8))
    arguments = qwen_inputs(transformer, torch.cat([latents, image], 1), timestep, branch)
    return arguments | {"img_shapes": [[(1, ROWS, COLUMNS), (1, 5, 6)]]}
