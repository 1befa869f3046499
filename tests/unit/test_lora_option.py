"""`lora=FILE` of the command line: what is loaded, what is refused, and that its bytes count."""

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from pipelines_random import BUILDERS
from safetensors.torch import save_file

from tapvideo import lora
from tapvideo.config import ConfigError
from tapvideo.pipeline import accelerated, load_pipeline
from tapvideo.resolve import run_kind
from tapvideo.run_folder import read_prompts, run_folder
from tapvideo.sample import sample


def ignore(_step: int) -> None:
    pass


@pytest.fixture
def adapter(tmp_path):
    """Make a LoRA for a tiny pipeline: a folder with one file."""

    def make(model, seed=0):
        pipe = BUILDERS[model]()
        torch.manual_seed(seed)
        pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
        folder = tmp_path / f"{model}{seed}"
        type(pipe).save_lora_weights(folder, transformer_lora_layers=get_peft_model_state_dict(pipe.transformer))
        return folder

    return make


def latents(made, *, tap=False):
    pipe = load_pipeline(made)
    if not tap:
        return sample(pipe, made, "a red circle", 0, ignore).latents
    with accelerated(pipe, made):
        return sample(pipe, made, "a red circle", 0, ignore).latents


@pytest.mark.parametrize("model", ["flux", "ltx"])
def test_a_lora_is_loaded_at_its_scale_under_tap(model_config, adapter, model):
    folder = adapter(model)
    (file,) = folder.iterdir()
    plain = latents(model_config(model, "steps=3"))
    one, same = (latents(model_config(model, "steps=3", f"lora={path}")) for path in (folder, file))
    assert torch.equal(one, same)
    none = latents(model_config(model, "steps=3", f"lora={file}", "lora_scale=0.0"))
    assert torch.allclose(none, plain, atol=1e-6)
    assert (one - plain).abs().max() > 1e-5
    every = model_config(model, "steps=3", f"lora={file}", "schedule.interval=1", "schedule.min_steps=0")
    assert torch.equal(latents(every, tap=True), one)


def test_each_expert_can_have_its_own(model_config, adapter):
    first, second = adapter("wan22", 0), adapter("wan22", 1)
    pipe = load_pipeline(model_config("wan22", f"lora={first}"))
    assert all("lora" in expert.peft_config for expert in (pipe.transformer, pipe.transformer_2))
    both = latents(model_config("wan22", "steps=4", f"lora={first}"))
    apart = latents(model_config("wan22", "steps=4", f"lora={first}", f"lora_2={second}"))
    assert (both - apart).abs().max() > 1e-5


def test_a_calibration_is_of_one_lora_and_scale(model_config, adapter):
    plain, one, less, other = (
        run_kind(model_config("flux", *overrides))
        for overrides in (
            [],
            [f"lora={adapter('flux')}"],
            [f"lora={adapter('flux')}", "lora_scale=0.5"],
            [f"lora={adapter('flux', 1)}"],
        )
    )
    assert plain.lora is None
    assert len({kind.lora for kind in (one, less, other)}) == 3
    assert "LoRA" in str(one)
    assert "LoRA" not in str(plain)


@pytest.mark.parametrize("overrides", [["lora_scale=0.5"], ["lora=x.safetensors", "lora_scale=nan"]])
def test_scales_of_nothing_and_scales_that_are_none_are_refused(composed, overrides):
    with pytest.raises(ConfigError, match=r"lora_scale=.* cannot be; allowed: "):
        composed("model=flux", *overrides)


def test_its_bytes_name_the_run_and_its_path_does_not(model_config, adapter):
    def name(path):
        made = model_config("flux", f"lora={path}")
        return run_folder(made, read_prompts(made)).name

    folder = adapter("flux")
    (file,) = folder.iterdir()
    copy = file.with_name("copy").with_suffix(".safetensors")
    assert name(folder) == name(file)
    before = name(file)
    file.rename(copy)
    assert name(copy) == name(folder) == before
    assert name(adapter("flux", 1)) != name(copy)
    assert name(copy) != run_folder(model_config("flux"), ["a red circle"]).name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lora=/nowhere.safetensors"], "lora='/nowhere.safetensors' is no file of safetensors"),
        (["lora=PICKLE"], r"lora='.*weights\.bin' is no file of safetensors; allowed: a \.safetensors file"),
        (["lora=EMPTY"], r"has 0 files of safetensors \(none\)"),
        (["lora=TWO"], r"has 2 files of safetensors \(a\.safetensors, b\.safetensors\)"),
        (["lora=OTHER"], "lora='.*' (has nothing for|does not fit) model.weights=.*; allowed: a LoRA of this model"),
        (["lora=BROKEN"], "lora='.*' does not fit model.weights="),
        (["lora=OTHER", "lora_2=OTHER"], "lora_2='.*' is for the second of two experts"),
    ],
)
def test_what_is_no_lora_is_named(model_config, tmp_path, overrides, message):
    (tmp_path / "weights.bin").write_bytes(b"0")
    (tmp_path / "empty").mkdir()
    (tmp_path / "two").mkdir()
    for name in "ab":
        save_file({"x": torch.zeros(1)}, tmp_path / "two" / f"{name}.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no safetensors at all")
    places = {"PICKLE": "weights.bin", "EMPTY": "empty", "TWO": "two", "OTHER": "other.safetensors"}
    places["BROKEN"] = "broken.safetensors"
    for key, place in places.items():
        overrides = [o.replace(key, str(tmp_path / place)) for o in overrides]
    with pytest.raises(ConfigError, match=message) as error:
        load_pipeline(model_config("flux", *overrides))
    assert "\n" not in str(error.value)


def test_without_peft_it_says_what_to_install(model_config, adapter, monkeypatch):
    monkeypatch.setattr(lora, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"lora='.*' needs peft.*pip install 'tapvideo\[lora\]'"):
        load_pipeline(model_config("flux", f"lora={adapter('flux')}"))


def test_a_lora_that_fits_in_part_is_refused(model_config, adapter):
    """FLUX has the single-stream blocks that Qwen-Image has not; both have the others."""
    with pytest.raises(ConfigError, match=r"lora='.*' has tensors that model\.weights=.* has no place for, e\.g\. "):
        load_pipeline(model_config("qwen_image", f"lora={adapter('flux')}"))
