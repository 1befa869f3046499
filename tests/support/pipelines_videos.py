"""Tiny random pipelines of HunyuanVideo from an image, HunyuanVideo 1.5, Mochi and SkyReels-V2."""

from typing import Any

from diffusers import (
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLMochi,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideoImageToVideoPipeline,
    MochiPipeline,
    SkyReelsV2ImageToVideoPipeline,
    SkyReelsV2Pipeline,
    SkyReelsV2Transformer3DModel,
)
from diffusers.guiders import ClassifierFreeGuidance
from hunyuan_random import random_transformer as random_hunyuan
from mochi_random import random_hunyuan15, random_mochi
from pipelines_parts import clip, hunyuan_vae, llama, t5, tokenizer, umt5, vision, wan_scheduler, wan_vae
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

_HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<image>")
# As long as the system prompt that the pipeline cuts off, and then the messages.
_CHAT = "{% for _ in range(120) %}a {% endfor %}{% for message in messages %}{{ message['content'] }} {% endfor %}"


def _llava(words: Any) -> Any:
    """Sees a picture as 576 tokens, as the pipeline's template has it."""
    view = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=336, patch_size=14
    )
    language = LlamaConfig(
        vocab_size=len(words), hidden_size=8, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=2048, pad_token_id=0, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    image = words.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=view, text_config=language, image_token_index=image, pad_token_id=0)
    return LlavaForConditionalGeneration(config).eval()


def hunyuan_image(variant: str = "i2v-tokens") -> Any:
    words = tokenizer(*_HEADERS)
    return HunyuanVideoImageToVideoPipeline(
        text_encoder=_llava(words), tokenizer=words, transformer=random_hunyuan(variant), vae=hunyuan_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=17.0), text_encoder_2=clip(), tokenizer_2=tokenizer(),
        image_processor=CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
    )  # fmt: skip


def hunyuan_image_latents() -> Any:
    return hunyuan_image("i2v-latents")


def _hunyuan15_parts() -> dict[str, Any]:
    words = tokenizer()
    words.chat_template = _CHAT
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1, scaling_factor=1.0
    )
    return {
        "text_encoder": llama(), "tokenizer": words, "vae": vae.eval(), "text_encoder_2": t5(6),
        "tokenizer_2": tokenizer(), "scheduler": FlowMatchEulerDiscreteScheduler(shift=5.0),
        "guider": ClassifierFreeGuidance(guidance_scale=6.0),
    }  # fmt: skip


def _hunyuan15_transformer(task: str) -> Any:
    """Small: the pipelines always hand it some 2,000 tokens of text."""
    return random_hunyuan15(target_size=32, task_type=task, num_attention_heads=2, num_layers=1)


def hunyuan15() -> Any:
    return HunyuanVideo15Pipeline(transformer=_hunyuan15_transformer("t2v"), **_hunyuan15_parts())


def hunyuan15_image() -> Any:
    config = SiglipVisionConfig(
        hidden_size=5, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=32, patch_size=16
    )
    return HunyuanVideo15ImageToVideoPipeline(
        transformer=_hunyuan15_transformer("i2v"), image_encoder=SiglipVisionModel(config).eval(),
        feature_extractor=SiglipImageProcessor(size={"height": 32, "width": 32}), **_hunyuan15_parts(),
    )  # fmt: skip


def mochi() -> Any:
    vae = AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32), decoder_block_out_channels=(32, 32, 32, 32), latent_channels=12,
        layers_per_block=(1, 1, 1, 1, 1),
    )  # fmt: skip
    return MochiPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True), vae=vae.eval(), text_encoder=t5(8),
        tokenizer=tokenizer(), transformer=random_mochi(in_channels=12),
    )  # fmt: skip


def _skyreels_parts(**changes: Any) -> dict[str, Any]:
    config = {
        "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4,
        "out_channels": 4, "text_dim": 8, "freq_dim": 16, "ffn_dim": 32, "num_layers": 2, "cross_attn_norm": True,
        "rope_max_seq_len": 32,
    }  # fmt: skip
    transformer = SkyReelsV2Transformer3DModel(**config | changes).eval()
    parts = {"tokenizer": tokenizer(), "text_encoder": umt5(), "vae": wan_vae(), "scheduler": wan_scheduler(1.0)}
    return {**parts, "transformer": transformer}


def skyreels() -> Any:
    return SkyReelsV2Pipeline(**_skyreels_parts())


def skyreels_image() -> Any:
    encoder, processor = vision()
    parts = _skyreels_parts(in_channels=12, image_dim=8, added_kv_proj_dim=32)
    return SkyReelsV2ImageToVideoPipeline(image_encoder=encoder, image_processor=processor, **parts)


BUILDERS = {
    "hunyuan_i2v": hunyuan_image,
    "hunyuan_i2v_latents": hunyuan_image_latents,
    "hunyuan15": hunyuan15,
    "hunyuan15_i2v": hunyuan15_image,
    "mochi": mochi,
    "skyreels": skyreels,
    "skyreels_i2v": skyreels_image,
}
