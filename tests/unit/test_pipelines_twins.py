"""Pipelines whose guidance branches get the same latents and timestep: one probe for both, and the same frames."""

import pytest
import torch
from pipelines_random import MODELS

from tapvideo import stack as stack_module
from tapvideo.models.alike import LastCall
from tapvideo.pipeline import accelerated, load_pipeline
from tapvideo.sample import sample

TWINS = (
    "wan_i2v",
    "wan22",
    "wan22_i2v",
    "wan22_ti2v",
    "hunyuan15",
    "hunyuan15_i2v",
    "skyreels",
    "skyreels_i2v",
    "cogview4",
)
"""The others pass both branches in one call, or embed the text with the timestep, or divide timesteps anew."""


@pytest.mark.parametrize("model", MODELS)
def test_whose_branches_have_one_probe(model_config, monkeypatch, model):
    made, count = model_config(model, "steps=12", "schedule=interval"), 0
    original = stack_module.proxy_error

    def counted(*args, **kwargs):
        nonlocal count
        count += 1
        return original(*args, **kwargs)

    monkeypatch.setattr(stack_module, "proxy_error", counted)
    pipe, counts, frames, kept = load_pipeline(made), [], [], []
    for _ in range(2):
        count = 0
        with accelerated(pipe, made) as tap:
            frames.append(sample(pipe, made, "a red circle", 3, lambda step: None).frames)
            kept.append(tap.summary().state_bytes)
        counts.append(count)
        monkeypatch.setattr(LastCall, "is_repeated", lambda *_: False)
    assert torch.equal(*frames)
    assert counts[0] > 0
    shares = model in TWINS
    assert counts[1] == (1 + shares) * counts[0]
    assert 3 * kept[1] == (4 if shares else 3) * kept[0]
