"""Tiny models have every option of the checkpoints they stand for, and yamls what is written beside the weights."""

import inspect
from pathlib import Path
from typing import Any

import diffusers
import pytest
from checkpoints import CHECKPOINTS
from model_cases import CASES
from omegaconf import OmegaConf
from pipelines_random import BUILDERS

from tapvideo.config import config_dir
from tapvideo.pipeline_kinds import KINDS

SIZES = {
    "ends": {"in_channels", "out_channels", "audio_in_channels", "audio_out_channels"},
    "blocks": {"num_layers", "num_single_layers", "num_refiner_layers"},
    "heads": {
        "num_attention_heads", "attention_head_dim", "audio_num_attention_heads", "audio_attention_head_dim",
        "rope_axes_dim", "axes_dims_rope",
    },
    "widths": {
        "ffn_dim", "freq_dim", "time_embed_dim", "ofs_embed_dim", "condition_dim", "added_kv_proj_dim", "image_dim",
        "image_embed_dim", "text_dim", "text_embed_dim", "text_embed_2_dim", "pooled_projection_dim",
        "joint_attention_dim", "caption_channels", "cross_attention_dim", "audio_cross_attention_dim",
    },
    "lengths": {
        "rope_max_seq_len", "pos_embed_seq_len", "max_text_seq_length", "sample_frames", "sample_height",
        "sample_width", "target_size",
    },
}  # fmt: skip
"""Options whose value may be another; whether there is one may not. All others are equal."""


def _inner(config: dict[str, Any], kind: str = "") -> int:
    return config[f"{kind}num_attention_heads"] * config[f"{kind}attention_head_dim"]


RATIOS = {
    "more channels go in than come out": lambda c: c["in_channels"] > (c["out_channels"] or c["in_channels"]),
    "text is narrower than tokens": lambda c: c["pooled_projection_dim"] < _inner(c),
    "images' keys are as wide as tokens": lambda c: (c["added_kv_proj_dim"] or _inner(c)) == _inner(c),
    "text is as wide as tokens": lambda c: c["cross_attention_dim"] == _inner(c),
    "text is as wide as the sound": lambda c: c["audio_cross_attention_dim"] == _inner(c, "audio_"),
    "sound is narrower than video": lambda c: _inner(c, "audio_") < _inner(c),
    "a head is turned along three dims": lambda c: len(c["rope_axes_dim"]) == 3,
    "a head is turned as a whole": lambda c: sum(c["rope_axes_dim"]) == c["attention_head_dim"],
    "a head of a picture is turned as a whole": lambda c: sum(c["axes_dims_rope"]) == c["attention_head_dim"],
}
"""What sizes are to each other; asked where a class has them."""

IGNORED = {"Qwen/Qwen-Image": {"pooled_projection_dim"}}
"""Options of a file that the class does not know; diffusers passes over them."""

TINY = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": ("Wan 2.1 T2V",),
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": ("Wan 2.1 T2V",),
    "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers": ("Wan 2.1 I2V", "wan_i2v"),
    "Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers": ("Wan 2.1 FLF2V", "wan_flf"),
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": ("Wan 2.1 T2V", "wan22"),
    "Wan-AI/Wan2.2-I2V-A14B-Diffusers": ("Wan 2.2 I2V", "wan22_i2v"),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": ("Wan 2.2 TI2V", "wan22_ti2v"),
    "Skywork/SkyReels-V2-T2V-14B-540P-Diffusers": ("SkyReels-V2 T2V", "skyreels"),
    "Skywork/SkyReels-V2-I2V-14B-540P-Diffusers": ("SkyReels-V2 I2V", "skyreels_i2v"),
    "hunyuanvideo-community/HunyuanVideo": ("HunyuanVideo T2V", "hunyuan"),
    "hunyuanvideo-community/HunyuanVideo-I2V": ("HunyuanVideo I2V, tokens", "hunyuan_i2v"),
    "hunyuanvideo-community/HunyuanVideo-I2V-33ch": ("HunyuanVideo I2V, latents", "hunyuan_i2v_latents"),
    "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v": ("HunyuanVideo 1.5 T2V", "hunyuan15"),
    "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_i2v": ("HunyuanVideo 1.5 I2V", "hunyuan15_i2v"),
    "genmo/mochi-1-preview": ("Mochi", "mochi"),
    "zai-org/CogVideoX-2b": ("CogVideoX 2B", "cogvideox_2b"),
    "zai-org/CogVideoX-5b": ("CogVideoX 5B", "cogvideox_5b"),
    "zai-org/CogVideoX-5b-I2V": ("CogVideoX 5B I2V", "cogvideox_i2v"),
    "zai-org/CogVideoX1.5-5B": ("CogVideoX 1.5",),
    "zai-org/CogVideoX1.5-5B-I2V": ("CogVideoX 1.5 I2V",),
    "Lightricks/LTX-Video": ("LTX-Video T2V", "LTX-Video I2V", "ltx"),
    "Lightricks/LTX-Video-0.9.7-dev": ("LTX-Video T2V", "LTX-Video I2V"),
    "Lightricks/LTX-2": ("LTX-2 T2V", "LTX-2 I2V", "ltx2"),
    "Lightricks/LTX-2.3": ("LTX-2.3 T2V",),
    "black-forest-labs/FLUX.1-dev": ("FLUX.1", "flux"),
    "Qwen/Qwen-Image": ("Qwen-Image", "qwen_image"),
    "Qwen/Qwen-Image-Edit-2511": ("Qwen-Image Edit",),
    "zai-org/CogView4-6B": ("CogView4", "cogview4"),
}
"""Rows of the table of models (`tests/models`) and pipelines (`pipelines_random.BUILDERS`) by what they stand for."""

SHIFTS = {
    "wan_14b": (5.0, "diffusers' documentation of Wan: 5.0 for 720p"),
    "wan22": (12.0, "Wan 2.2's wan/configs/wan_t2v_A14B.py"),
    "wan22_i2v": (5.0, "Wan 2.2's wan/configs/wan_i2v_A14B.py"),
    "skyreels": (8.0, "the example of SkyReelsV2Pipeline"),
    "skyreels_i2v": (5.0, "the example of SkyReelsV2ImageToVideoPipeline"),
    "hunyuan_i2v": (7.0, "the model card, for latents that begin near the image, as diffusers' do"),
}
"""Flow shifts of yamls that are not those beside the weights, and who says so."""

SOLVERS = {
    "UniPCMultistepScheduler": "unipc",
    "FlowMatchEulerDiscreteScheduler": "euler",
    "CogVideoXDDIMScheduler": "ddim",
}
OTHER_SOLVERS = {"cogvideox_5b": ("dpm", "inference/cli_demo.py of zai-org/CogVideo, for 5B")}
ROWS = {case.name: case for case in CASES}
PAIRS = [(hub, name) for hub, names in TINY.items() for name in names]
YAMLS = sorted(path.stem for path in (Path(config_dir()) / "model").glob("*.yaml") if path.stem != "wan_tiny")


def defaults_of(kind: str) -> dict[str, Any]:
    parameters = inspect.signature(getattr(diffusers, kind).__init__).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name != "self"}


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value


def differences(kind: str, published: dict[str, Any], tiny: dict[str, Any]) -> list[str]:
    """Options that are not as published, in words."""
    sizes, defaults = set().union(*SIZES.values()), defaults_of(kind)
    real = {name: plain(published.get(name, default)) for name, default in defaults.items()}
    own = {name: plain(tiny[name]) for name in defaults}
    found = [
        f"{name}={own[name]!r}, published {real[name]!r}"
        for name in defaults
        if ((own[name] is None) != (real[name] is None) if name in sizes else own[name] != real[name])
    ]
    for words, ratio in RATIOS.items():
        try:
            expected = ratio(real)
        except (KeyError, TypeError):  # the class has no such sizes
            continue
        found += [] if ratio(own) == expected else [f"{words}: {not expected}, published {expected}"]
    return found


def tiny_parts(name: str) -> tuple[Any, Any]:
    """A transformer, and its scheduler where it comes with one."""
    if name in ROWS:
        return ROWS[name].transformer(), None
    pipe = BUILDERS[name]()
    return pipe.transformer, pipe.scheduler


@pytest.mark.parametrize(("hub", "name"), PAIRS, ids=[f"{hub.split('/')[1]}-{name}" for hub, name in PAIRS])
def test_tiny_model_has_the_options_of_its_checkpoint(hub, name):
    published = CHECKPOINTS[hub]
    transformer, scheduler = tiny_parts(name)
    assert type(transformer).__name__ == published.transformer.kind
    assert not differences(published.transformer.kind, published.transformer.config, transformer.config)
    if scheduler is not None and not published.scheduler.not_found:
        assert type(scheduler).__name__ == published.scheduler.kind
        found = {option: scheduler.config[option] for option in published.scheduler.config}
        assert found == published.scheduler.config


def test_every_checkpoint_and_every_row_has_its_counterpart():
    assert set(TINY) == set(CHECKPOINTS)
    supported = {name for name, case in ROWS.items() if not case.refused}
    named = {name for names in TINY.values() for name in names}
    assert named - set(BUILDERS) == supported


@pytest.mark.parametrize("hub", CHECKPOINTS)
def test_options_are_known_to_the_class_and_have_a_source(hub):
    published = CHECKPOINTS[hub]
    assert set(published.transformer.config) - set(defaults_of(published.transformer.kind)) == IGNORED.get(hub, set())
    for component in (published.transformer, published.scheduler):
        assert component.not_found or any("http" in source for source in component.source)
    if published.scheduler.kind:
        assert set(published.scheduler.config) <= set(defaults_of(published.scheduler.kind))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"qk_norm": "rms_norm"}, "qk_norm"),
        ({"pos_embed_seq_len": None}, "pos_embed_seq_len"),
        ({"patch_size": (1, 1, 1)}, "patch_size"),
        ({"in_channels": 4}, "more channels"),
        ({"added_kv_proj_dim": 40}, "as wide as tokens"),
        ({"num_layers": 7, "ffn_dim": 99, "freq_dim": 8}, None),
    ],
)
def test_differences_are_seen(change, words):
    published = CHECKPOINTS["Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers"].transformer
    tiny = {**ROWS["Wan 2.1 FLF2V"].transformer().config, **change}
    found = differences(published.kind, published.config, tiny)
    assert [words in text for text in found] == [True] if words else not found


@pytest.mark.parametrize("name", YAMLS)
def test_yaml_names_a_known_checkpoint_its_scheduler_and_flow_shift(name):
    model = OmegaConf.load(Path(config_dir()) / "model" / f"{name}.yaml")
    scheduler = CHECKPOINTS[model["weights"]].scheduler
    solver, _ = OTHER_SOLVERS.get(name, (SOLVERS[scheduler.kind], ""))
    assert model["scheduler"] in (solver, "model")
    assert model["scheduler"] in KINDS[model["pipeline"]].schedulers
    if model["scheduler"] != "model" and solver in ("unipc", "euler"):
        stored = scheduler.config.get("flow_shift", scheduler.config.get("shift"))
        assert model["flow_shift"] == SHIFTS.get(name, (stored, ""))[0]
        assert name not in SHIFTS or model["flow_shift"] != stored
