"""Fixtures of all tests: a tiny random pipeline on disk, and configs that use it."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from hydra import compose, initialize_config_dir
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from tapvideo.config import GenerateConfig, config_dir

WORDS = ("<pad>", "</s>", "<unk>", "a", "red", "circle", "moving", "left")


def _tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    )


@pytest.fixture(scope="session")
def saved_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of `save_pretrained` with a random Wan of every component, 4x8x8 latents and 1x2x2 patches."""
    torch.manual_seed(0)
    text = UMT5Config(vocab_size=len(WORDS), d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    transformer = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8, freq_dim=16,
        ffn_dim=32, num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip
    vae = AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    )
    pipe = WanPipeline(
        tokenizer=_tokenizer(), text_encoder=UMT5EncoderModel(text), transformer=transformer, vae=vae,
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("weights") / "random_wan"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def composed():
    """Compose `conf/generate.yaml` with overrides, as the command line does, but with the paper's method by default."""

    def compose_config(*overrides: str) -> GenerateConfig:
        if not any(override.startswith("tap=") for override in overrides):
            overrides = ("tap=paper", *overrides)
        with initialize_config_dir(str(config_dir().resolve()), version_base="1.3"):
            return GenerateConfig.from_hydra(compose("generate", list(overrides)))

    return compose_config


@pytest.fixture
def random_overrides(saved_pipeline: Path, tmp_path: Path) -> list[str]:
    """A run of the random pipeline: 14 small steps into a temporary folder."""
    return [
        f"model.weights={saved_pipeline}", f"output_dir={tmp_path / 'outputs'}", "model.name=random", "height=32",
        "width=32", "num_frames=5", "steps=14", "prompt='a red circle'", "verbose=false",
    ]  # fmt: skip
