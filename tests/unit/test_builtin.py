"""The model that ships: whole, small, safe to load, and trained."""

import random

import pytest
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from transformers import UMT5EncoderModel

from tapvideo.pipeline import load_pipeline
from tapvideo.tiny import scenes, vae
from tapvideo.tiny.score import score_clip
from tapvideo.weights import ASSETS

FOLDER = ASSETS / "wan_tiny"


@pytest.fixture
def builtin_pipe(composed):
    return load_pipeline(composed())


def test_builtin_model_is_small_and_safe():
    files = [f for f in FOLDER.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 16e6
    assert {f.suffix for f in files} <= {".json", ".safetensors", ".md", ".png"}


def test_builtin_model_is_a_wan_pipeline(builtin_pipe):
    classes = {name: type(part) for name, part in builtin_pipe.components.items() if part is not None}
    assert type(builtin_pipe) is WanPipeline
    assert classes["transformer"] is WanTransformer3DModel
    assert classes["vae"] is AutoencoderKLWan
    assert classes["text_encoder"] is UMT5EncoderModel
    assert classes["scheduler"] is UniPCMultistepScheduler


def test_builtin_scheduler_on_disk_is_wans():
    config = UniPCMultistepScheduler.from_pretrained(FOLDER, subfolder="scheduler").config
    assert (config.prediction_type, config.use_flow_sigmas, config.flow_shift) == ("flow_prediction", True, 3.0)


def test_builtin_vae_keeps_held_out_clips(builtin_pipe):
    mean, worst, *_ = vae.measure(builtin_pipe.vae, num_clips=4)
    assert mean > 30
    assert worst > 24


def test_builtin_model_paints_the_background_it_is_told(builtin_pipe):
    """Twelve steps suffice for the background, which lost weights would get right once in eight."""
    rng = random.Random(3)
    captions = [scenes.caption(scenes.sample_scene(rng, held_out=True)) for _ in range(4)]
    clips = builtin_pipe(
        captions,
        height=64,
        width=64,
        num_frames=17,
        num_inference_steps=12,
        guidance_scale=6.0,
        max_sequence_length=64,
        generator=[torch.Generator().manual_seed(i) for i in range(4)],
        output_type="pt",
    ).frames
    assert sum(score_clip(clip, text).background for clip, text in zip(clips, captions, strict=True)) >= 3
