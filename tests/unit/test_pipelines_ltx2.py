"""LTX-2 from the command line's config: guidance that takes further passes."""

import pytest

from tapvideo.config import ConfigError
from tapvideo.generate import latent_size
from tapvideo.memory import kept_on_this_rank
from tapvideo.parallel.topology import alone
from tapvideo.pipeline import accelerated, load_pipeline
from tapvideo.sample import sample

STG = ("model.call.stg_scale=1", "model.call.spatio_temporal_guidance_blocks=[1]")
MODALITY = ("model.call.modality_scale=3",)


@pytest.mark.parametrize(
    ("overrides", "branches"),
    [
        ((), 2),
        (STG, 3),
        (MODALITY, 3),
        ((*STG, *MODALITY), 4),
        (("model.call.audio_stg_scale=1",), 3),
        (("model.call.audio_modality_scale=2", "guidance=1"), 2),
        (("guidance=1",), 1),
        (("guidance=1", "model.call.audio_guidance_scale=7"), 2),
    ],
)
def test_passes_of_a_step_are_counted(model_config, overrides, branches):
    assert model_config("ltx2", *overrides).branches == branches


@pytest.mark.parametrize("value", ["[1]", "abc", "true"])
def test_scales_are_numbers(model_config, value):
    with pytest.raises(
        ConfigError, match=r"model\.call\.audio_stg_scale=.* is no scale of guidance; allowed: a number"
    ):
        model_config("ltx2", f"model.call.audio_stg_scale={value}")


def test_what_perturbed_passes_keep_is_foreseen(model_config):
    made = {}
    for name, overrides in {"plain": (), "perturbed": (*STG, *MODALITY)}.items():
        config = model_config("ltx2", "tap=paper", "schedule=interval", *overrides)
        pipe = load_pipeline(config)
        with accelerated(pipe, config) as tap:
            sample(pipe, config, "a red circle", 0, lambda _: None)
        promised = kept_on_this_rank(
            pipe.transformer, config.tap_config, alone(), latent_size=latent_size(pipe, config),
            num_steps=config.steps, branches=config.branches,
        )  # fmt: skip
        made[name] = promised.anchors, tap.summary().state_bytes
        assert promised.anchors <= tap.summary().state_bytes  # the sound's few come on top
    assert [few / many for few, many in zip(made["plain"], made["perturbed"], strict=True)] == [0.5, 0.5]
