"""Tiny Mochi and HunyuanVideo 1.5 transformers with random weights, called as their pipelines call them."""

import torch
from diffusers import HunyuanVideo15Transformer3DModel, MochiTransformer3DModel

CHANNELS, TEXT, TEXT_DIM = 4, 7, 8


def random_mochi(**changes):
    """As `genmo/mochi-1-preview`'s config.json but for sizes: text is narrower than the video's tokens."""
    torch.manual_seed(0)
    config = {
        "patch_size": 2,
        "num_attention_heads": 6,
        "attention_head_dim": 16,
        "num_layers": 3,
        "pooled_projection_dim": 32,
        "in_channels": CHANNELS,
        "text_embed_dim": TEXT_DIM,
        "time_embed_dim": 16,
    }
    transformer = MochiTransformer3DModel(**config | changes).eval()
    with torch.no_grad():
        transformer.pos_frequencies.normal_()  # learned; zeros before training
    return transformer


def random_hunyuan15(**changes):
    """As `hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v`'s config.json but for sizes."""
    torch.manual_seed(0)
    config = {
        "in_channels": 2 * CHANNELS + 1,
        "out_channels": CHANNELS,
        "num_attention_heads": 6,
        "attention_head_dim": 16,
        "num_layers": 3,
        "num_refiner_layers": 1,
        "text_embed_dim": TEXT_DIM,
        "text_embed_2_dim": 6,
        "image_embed_dim": 5,
        "rope_axes_dim": (4, 6, 6),
        "task_type": "t2v",
    }
    return HunyuanVideo15Transformer3DModel(**config | changes).eval()


def noise(_):
    return torch.randn(1, CHANNELS, 3, 10, 14, generator=torch.Generator().manual_seed(1))  # 105 tokens


def hunyuan15_noise(_):
    return torch.randn(1, CHANNELS, 3, 5, 7, generator=torch.Generator().manual_seed(1))  # 105 tokens, too


def mochi_inputs(_, latents, timestep, branch):
    """Both branches in one batch; prompts are of different lengths, and padded."""
    text = torch.randn(2, TEXT, TEXT_DIM, generator=torch.Generator().manual_seed(3))
    return {
        "hidden_states": torch.cat([latents] * 2),
        "encoder_hidden_states": text,
        "timestep": torch.full((2,), timestep),
        "encoder_attention_mask": torch.arange(TEXT) < torch.tensor([[TEXT - 4], [TEXT]]),
    }


def hunyuan15_inputs(_, latents, timestep, branch, *, image=False):
    """Two text encoders, both padded; without an image its view is zeros, and masked."""
    generator = torch.Generator().manual_seed(3 if branch == "cond" else 4)
    condition = torch.randn(1, CHANNELS + 1, *latents.shape[2:], generator=torch.Generator().manual_seed(5))
    view = torch.randn(1, 5, 5, generator=torch.Generator().manual_seed(6))
    return {
        "hidden_states": torch.cat([latents, condition if image else torch.zeros_like(condition)], 1),
        "timestep": torch.tensor([timestep]),
        "encoder_hidden_states": torch.randn(1, TEXT, TEXT_DIM, generator=generator),
        "encoder_attention_mask": (torch.arange(TEXT) < (5 if branch == "cond" else 2))[None].long(),
        "encoder_hidden_states_2": torch.randn(1, 4, 6, generator=generator),
        "encoder_attention_mask_2": (torch.arange(4) < 3)[None].long(),
        "image_embeds": view if image else torch.zeros_like(view),
    }
