"""Tiny random LTX-2 transformers and pipelines, called as diffusers' pipelines call them."""

import torch
from diffusers import (
    LTX2VideoTransformer3DModel,
)

CHANNELS, AUDIO_CHANNELS, AUDIO, TEXT, TEXT_DIM = 8, 4, 11, 6, 12
GRID = (3, 5, 7)  # 105 tokens of video, 11 of audio
NEWER = {
    "gated_attn": True,
    "audio_gated_attn": True,
    "cross_attn_mod": True,
    "audio_cross_attn_mod": True,
    "perturbed_attn": True,
}
"""What LTX-2.3 has and LTX-2 has not."""


def random_transformer(num_layers=3, heads=6, seed=0, **changes):
    """As `Lightricks/LTX-2`'s config.json but for sizes: video of 16 and audio of 8 numbers a head."""
    torch.manual_seed(seed)
    config = {
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "num_attention_heads": heads,
        "attention_head_dim": 16,
        "cross_attention_dim": 16 * heads,
        "audio_in_channels": AUDIO_CHANNELS,
        "audio_out_channels": AUDIO_CHANNELS,
        "audio_num_attention_heads": heads,
        "audio_attention_head_dim": 8,
        "audio_cross_attention_dim": 8 * heads,
        "num_layers": num_layers,
        "caption_channels": TEXT_DIM,
        "rope_type": "split",
    }
    return LTX2VideoTransformer3DModel(**config | changes).eval()


def random_newer_transformer(**changes):
    """As LTX-2.3: attention gated by head, text modulated by the timestep, blocks that can be perturbed."""
    return random_transformer(**NEWER | changes)


def noise(_):
    """Of the video."""
    return torch.randn(1, 105, CHANNELS, generator=torch.Generator().manual_seed(1))


def inputs(_, latents, timestep, branch, *, per_token=False, cross=False):
    """Arguments of a call: two prompts at once, or one where blocks are perturbed or streams kept apart.

    Args:
        latents: of the video; the sound's are drawn.
        timestep: from 1000 to 0.
        branch: `cond_uncond`, `uncond_stg` or `uncond_modality`, as the pipelines name them.
        per_token: as image to video, whose first frame is clean.
        cross: as LTX-2.3, where streams are modulated by each other's noise level.
    """
    batch = 2 if branch == "cond_uncond" else 1
    generator = torch.Generator().manual_seed(3)
    text = torch.randn(2, batch, TEXT, TEXT_DIM, generator=generator)
    t, h, w = GRID
    now = torch.full((batch,), timestep)
    given = {
        "hidden_states": torch.cat([latents] * batch),
        "audio_hidden_states": torch.randn(1, AUDIO, AUDIO_CHANNELS, generator=generator).repeat(batch, 1, 1),
        "encoder_hidden_states": text[0],
        "audio_encoder_hidden_states": text[1],
        "timestep": now,
        "sigma": now,
        "encoder_attention_mask": torch.ones(batch, TEXT),
        "audio_encoder_attention_mask": torch.ones(batch, TEXT),
        "num_frames": t,
        "height": h,
        "width": w,
        "fps": 24.0,
        "audio_num_frames": AUDIO,
        "isolate_modalities": branch == "uncond_modality",
        "spatio_temporal_guidance_blocks": [1] if branch == "uncond_stg" else None,
        "use_cross_timestep": cross,
    }
    if per_token:
        given["timestep"] = now[:, None].repeat(1, t * h * w)
        given["timestep"][:, : h * w] = 0
        given["audio_timestep"] = now
    return given
