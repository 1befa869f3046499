"""Tiny random LTX-2 transformers and pipelines, called as diffusers' pipelines call them."""

import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    FlowMatchEulerDiscreteScheduler,
    LTX2ImageToVideoPipeline,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

CHANNELS, AUDIO_CHANNELS, AUDIO, TEXT, TEXT_DIM = 8, 4, 11, 6, 12
GRID = (3, 5, 7)  # 105 tokens of video, 11 of audio
NEWER = {
    "gated_attn": True,
    "audio_gated_attn": True,
    "cross_attn_mod": True,
    "audio_cross_attn_mod": True,
    "perturbed_attn": True,
    "use_prompt_embeddings": False,
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
    """As LTX-2.3: attention gated by head, text modulated by the timestep and as wide as the streams, blocks that can
    be perturbed."""
    return random_transformer(**NEWER | changes)


def noise(_):
    """Of the video."""
    return torch.randn(1, 105, CHANNELS, generator=torch.Generator().manual_seed(1))


def inputs(transformer, latents, timestep, branch, *, per_token=False, cross=False):
    """Arguments of a call: two prompts at once, or one where blocks are perturbed or streams kept apart.

    Args:
        transformer: whose text it is.
        latents: of the video; the sound's are drawn.
        timestep: from 1000 to 0.
        branch: `cond_uncond`, `uncond_stg` or `uncond_modality`, as the pipelines name them.
        per_token: as image to video, whose first frame is clean.
        cross: as LTX-2.3, where streams are modulated by each other's noise level.
    """
    batch = 2 if branch == "cond_uncond" else 1
    generator = torch.Generator().manual_seed(3)
    config, projects = transformer.config, transformer.config.use_prompt_embeddings
    widths = [TEXT_DIM] * 2 if projects else [config.cross_attention_dim, config.audio_cross_attention_dim]
    text = [torch.randn(batch, TEXT, width, generator=generator) for width in widths]
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


def random_vae():
    """Strides of 4 frames and 8 x 8 pixels."""
    torch.manual_seed(1)
    return AutoencoderKLLTX2Video(
        latent_channels=CHANNELS,
        block_out_channels=(8, 8, 8),
        down_block_types=("LTX2VideoDownBlock3D",) * 3,
        decoder_block_out_channels=(8, 8),
        layers_per_block=(1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, True, False),
        decoder_spatio_temporal_scaling=(True, True),
        decoder_inject_noise=(False,) * 3,
        downsample_type=("spatiotemporal",) * 3,
        upsample_type=("spatiotemporal",) * 2,
        upsample_residual=(False,) * 2,
        upsample_factor=(1, 1),
        patch_size=2,
        decoder_causal=False,
    ).eval()


def random_audio_vae():
    """25 latents a second, of 2 channels and 2 mel bins: the transformer's audio channels."""
    return AutoencoderKLLTX2Audio(
        base_channels=4, ch_mult=(1,), num_res_blocks=1, resolution=32, latent_channels=2, mel_bins=8
    ).eval()


def random_vocoder():
    """Sound in stereo, 40 numbers a mel frame."""
    return LTX2Vocoder(
        in_channels=16,
        hidden_channels=16,
        upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]],
        output_sampling_rate=16000,
    ).eval()


def random_connectors(config):
    """From the text encoder's layers, embeddings and two more, to text for video and for sound of a transformer."""
    newer = not config.use_prompt_embeddings
    video, audio = (config.cross_attention_dim, config.audio_cross_attention_dim) if newer else (TEXT_DIM, TEXT_DIM)
    return LTX2TextConnectors(
        caption_channels=TEXT_DIM,
        text_proj_in_factor=3,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=video // 2,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=None,
        video_gated_attn=newer,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=audio // 2,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None,
        audio_gated_attn=newer,
        connector_rope_base_seq_len=32,
        rope_type="split",
        per_modality_projections=newer,
        video_hidden_dim=video,
        audio_hidden_dim=audio,
        proj_bias=newer,
    ).eval()


def random_gemma(words):
    """Text alone is read, but the class looks at pictures too."""
    text = {
        "vocab_size": words,
        "hidden_size": TEXT_DIM,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 6,
    }
    view = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(text_config=text, vision_config=view, mm_tokens_per_image=4)
    return Gemma3ForConditionalGeneration(config).eval()


def random_scheduler():
    """As the one beside the weights: the shift follows from the number of tokens."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        shift_terminal=0.1,
    )


def random_pipeline(tokenizer, *, transformer=None):
    """All parts, with the weights of LTX-2; `LTX2ImageToVideoPipeline` has the same ones."""
    transformer = transformer or random_transformer(heads=2)
    torch.manual_seed(2)
    pipe = LTX2Pipeline(
        scheduler=random_scheduler(),
        vae=random_vae(),
        audio_vae=random_audio_vae(),
        text_encoder=random_gemma(len(tokenizer)),
        tokenizer=tokenizer,
        connectors=random_connectors(transformer.config),
        transformer=transformer,
        vocoder=random_vocoder(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def from_image(pipe):
    """The same parts, for videos from a picture."""
    made = LTX2ImageToVideoPipeline(**pipe.components)
    made.set_progress_bar_config(disable=True)
    return made
