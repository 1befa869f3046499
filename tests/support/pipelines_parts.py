"""What tiny random pipelines are put together from: tokenizers, text and image encoders, VAEs."""

from typing import Any

from diffusers import AutoencoderKLHunyuanVideo, AutoencoderKLWan, UniPCMultistepScheduler
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

WORDS = ("<pad>", "</s>", "<unk>", "a", "red", "circle", "moving", "left")


def tokenizer(*special: str, longest: int = 512) -> Any:
    """One token a word, closed by `</s>`; `special` ones are whole words whatever they are made of."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=longest
    )
    made.add_tokens(list(special), special_tokens=True)
    return made


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
        num_key_value_heads=2, max_position_embeddings=2048, pad_token_id=0, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    return LlamaModel(config).eval()


def wan_vae() -> Any:
    return AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    ).eval()


def hunyuan_vae() -> Any:
    return AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4,
        mid_block_add_attention=False,
    ).eval()  # fmt: skip


def wan_scheduler(flow_shift: float = 3.0) -> Any:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=flow_shift)


def vision() -> tuple[Any, Any]:
    """CLIP's view of a picture, and what prepares the picture for it."""
    config = CLIPVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16,
    )  # fmt: skip
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return CLIPVisionModel(config).eval(), processor
