"""LoRA files loaded into a pipeline with TAP on or before it: bit for bit plain diffusers, in any order of calls."""

from dataclasses import replace

import pytest
import torch
import wan_random
from peft import LoraConfig, get_peft_model_state_dict
from pipelines_random import BUILDERS
from safetensors import safe_open

from tapvideo import ScheduleConfig, TapConfig, enable_tap
from tapvideo.config import RecomputeConfig

STEPS = 5
EVERY_STEP = TapConfig(schedule=ScheduleConfig(interval=1))
TAP = TapConfig(schedule=ScheduleConfig(kind="explicit", steps=[0, 1, 2], warmup=1, min_steps=0))


def _wan(pipe, scale):
    return wan_random.denoise(pipe, steps=STEPS, frames=5, attention_kwargs=scale)


def _from_words(pipe, scale):
    """Latents of a picture or a video, small enough for a test."""
    if type(pipe).__name__ == "FluxPipeline":
        own = {"max_sequence_length": 16, "joint_attention_kwargs": scale}
    else:
        own = {"max_sequence_length": 16, "num_frames": 5, "attention_kwargs": scale}
    out = pipe(
        prompt="a red circle",
        height=32,
        width=32,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        **own,
    )
    return out[0]


KINDS = {
    "Wan": (wan_random.random_pipeline, _wan),
    "Wan 2.2": (BUILDERS["wan22"], _from_words),
    "CogVideoX": (BUILDERS["cogvideox_5b"], _from_words),
    "FLUX.1": (BUILDERS["flux"], _from_words),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture
def pipe(kind):
    made = kind[0]()
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def run(kind, pipe):
    """Latents of a run as the pipeline is now; all adapters count `scale` times."""
    return lambda scale=None: kind[1](pipe, None if scale is None else {"scale": scale})


@pytest.fixture
def saved(kind, tmp_path):
    """Folders of two adapters, one safetensors file in each, as diffusers saves them."""
    folders = {}
    for seed, name in enumerate(("style", "motion")):
        other = kind[0]()  # not the pipeline of the test, which peft has not touched yet
        torch.manual_seed(seed)
        other.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
        layers = get_peft_model_state_dict(other.transformer)
        folders[name] = tmp_path / name
        type(other).save_lora_weights(folders[name], transformer_lora_layers=layers)
    return folders


def load(pipe, folder, name):
    """Into both experts, where there are two."""
    pipe.load_lora_weights(folder, adapter_name=name)
    if getattr(pipe, "transformer_2", None) is not None:
        pipe.load_lora_weights(folder, adapter_name=name, load_into_transformer_2=True)


def states(pipe, run, saved):
    """Latents with one adapter, with less of it, with both by weight, with one switched off, and without any."""
    load(pipe, saved["style"], "style")
    one, less = run(), run(scale=0.25)
    load(pipe, saved["motion"], "motion")
    pipe.set_adapters(["style", "motion"], [0.5, 1.5])
    both = run()
    pipe.set_adapters(["motion"], [1.5])
    other = run()
    pipe.unload_lora_weights()
    return one, less, both, other, run()


def all_differ(latents):
    return all((a - b).abs().max() > 1e-5 for i, a in enumerate(latents) for b in latents[:i])


def test_loading_switching_and_unloading_with_tap_on_is_plain_diffusers(pipe, run, saved):
    plain = run()
    expected = states(pipe, run, saved)
    assert all_differ(expected)
    assert torch.equal(expected[-1], plain)
    tap = enable_tap(pipe, EVERY_STEP)
    assert torch.equal(run(), plain)
    found = states(pipe, run, saved)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    tap.disable()
    assert torch.equal(run(), plain)


def test_tap_over_loaded_weights_and_weights_that_outlive_it(pipe, run, saved):
    plain = run()
    (file,) = saved["style"].glob("*.safetensors")
    load(pipe, file, "style")
    expected = run()
    tap = enable_tap(pipe, EVERY_STEP)
    assert torch.equal(run(), expected)
    tap.disable()
    assert torch.equal(run(), expected)
    tap = enable_tap(pipe, EVERY_STEP)
    pipe.unload_lora_weights()
    assert torch.equal(run(), plain)
    tap.disable()
    assert torch.equal(run(), plain)


@pytest.mark.parametrize("config", [TAP, replace(TAP, recompute=RecomputeConfig(budget=0.3))], ids=["tap", "recompute"])
def test_forecasts_are_those_of_the_weights_that_are_loaded(pipe, run, saved, config):
    load(pipe, saved["style"], "style")
    full = run()
    tap = enable_tap(pipe, config)
    after = run()
    assert torch.isfinite(after).all()
    assert not torch.equal(after, full)
    assert tap.summary().forecast_steps
    pipe.unload_lora_weights()
    without = run()
    load(pipe, saved["style"], "style")
    assert torch.equal(run(), after)  # nothing of the run without is left
    assert (without - after).abs().max() > 1e-5


def test_files_are_safetensors_of_the_transformer(saved):
    for folder in saved.values():
        (file,) = folder.iterdir()
        with safe_open(file, "pt") as opened:
            assert all(key.startswith("transformer.") and ".lora_" in key for key in opened.keys())
