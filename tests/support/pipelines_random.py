"""Tiny random pipelines of every class, saved as `save_pretrained` does, with tokenizers and text encoders."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTXPipeline,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
)
from ltx_random import random_scheduler, random_vae
from ltx_random import random_transformer as random_ltx
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)
from wan_random import random_transformer as random_wan

WORDS = ("<pad>", "</s>", "<unk>", "a", "red", "circle", "moving", "left")


def tokenizer() -> Any:
    """One token a word, closed by `</s>`."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def t5(width: int = 12) -> Any:
    config = {"vocab_size": len(WORDS), "d_model": width, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return T5EncoderModel(T5Config(**config)).eval()


def umt5() -> Any:
    config = {"vocab_size": len(WORDS), "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return UMT5EncoderModel(UMT5Config(**config)).eval()


def clip(width: int = 6) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(WORDS), hidden_size=width, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        eos_token_id=1,
    )  # fmt: skip
    return CLIPTextModel(config).eval()


def llama(width: int = 8) -> Any:
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=width, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=512, pad_token_id=0, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    return LlamaModel(config).eval()


def wan_vae() -> Any:
    return AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    ).eval()


def _ltx() -> Any:
    return LTXPipeline(
        tokenizer=tokenizer(), text_encoder=t5(), transformer=random_ltx(), vae=random_vae(),
        scheduler=random_scheduler(),
    )  # fmt: skip


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
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4,
        mid_block_add_attention=False,
    )  # fmt: skip
    return HunyuanVideoPipeline(
        text_encoder=llama(), tokenizer=tokenizer(), transformer=transformer.eval(), vae=vae.eval(),
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
    return _cogvideox(CogVideoXImageToVideoPipeline, in_channels=8, use_rotary_positional_embeddings=True)


def _wan_parts() -> dict[str, Any]:
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return {"tokenizer": tokenizer(), "text_encoder": umt5(), "vae": wan_vae(), "scheduler": scheduler}


def _wan_i2v(**changes: Any) -> Any:
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16,
    )  # fmt: skip
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return WanImageToVideoPipeline(
        transformer=random_wan(in_channels=12, image_dim=8, added_kv_proj_dim=32, **changes), image_processor=processor,
        image_encoder=CLIPVisionModel(vision).eval(), **_wan_parts(),
    )  # fmt: skip


def _wan_flf() -> Any:
    """First and last frame: 2 x 5 image tokens have positions of their own, as in Wan2.1-FLF2V-14B-720P-diffusers."""
    return _wan_i2v(pos_embed_seq_len=10)


def _wan22(kind: Any = WanPipeline, boundary: float = 0.875, **changes: Any) -> Any:
    """Two experts."""
    experts = {"transformer": random_wan(seed=0, **changes), "transformer_2": random_wan(seed=7, **changes)}
    return kind(**experts, boundary_ratio=boundary, **_wan_parts())


def _wan22_i2v() -> Any:
    return _wan22(WanImageToVideoPipeline, boundary=0.9, in_channels=12)


def _wan22_ti2v() -> Any:
    return WanPipeline(transformer=random_wan(), expand_timesteps=True, **_wan_parts())


BUILDERS = {
    "ltx": _ltx,
    "ltx_timestep_vae": _ltx_timestep_vae,
    "hunyuan": _hunyuan,
    "cogvideox_2b": _cogvideox,
    "cogvideox_5b": _cogvideox_rotary,
    "cogvideox_i2v": _cogvideox_image,
    "wan_i2v": _wan_i2v,
    "wan_flf": _wan_flf,
    "wan22": _wan22,
    "wan22_i2v": _wan22_i2v,
    "wan22_ti2v": _wan22_ti2v,
}


def save(name: str, folder: Path) -> Path:
    """One of them on disk."""
    torch.manual_seed(0)
    BUILDERS[name]().save_pretrained(folder)
    return folder
