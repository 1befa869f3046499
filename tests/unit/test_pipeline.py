import json
import shutil

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanPipeline

from tapvideo.config import ConfigError
from tapvideo.generate import plan_steps
from tapvideo.pipeline import accelerated, load_pipeline, make_scheduler, resolve_device
from tapvideo.sample import RunFailed, call_arguments, sample


@pytest.fixture
def config(composed, random_overrides):
    return composed(*random_overrides)


@pytest.fixture
def copied(saved_pipeline, tmp_path):
    """A copy of the weights to break."""
    return shutil.copytree(saved_pipeline, tmp_path / "copy")


def ignore(_step: int) -> None:
    pass


def test_sample_equals_plain_diffusers_bit_for_bit(config, saved_pipeline):
    plain = WanPipeline.from_pretrained(str(saved_pipeline), dtype=torch.float32)
    plain.set_progress_bar_config(disable=True)
    expected = plain(**call_arguments(config, WanPipeline, "a red circle", 3), output_type="np").frames[0]
    made = sample(load_pipeline(config), config, "a red circle", 3, ignore)
    assert torch.equal(made.frames, torch.from_numpy(expected))


def test_sample_after_tap_equals_sample_before(config):
    pipe = load_pipeline(config)
    before = sample(pipe, config, "a red circle", 0, ignore).frames
    with accelerated(pipe, config) as tap:
        accelerated_frames = sample(pipe, config, "a red circle", 0, ignore).frames
        assert tap.summary().forecast_steps
    assert not torch.equal(accelerated_frames, before)
    assert torch.equal(sample(pipe, config, "a red circle", 0, ignore).frames, before)


def test_sample_times_every_stage_and_tells_every_step(config):
    steps = []
    made = sample(load_pipeline(config), config, "a red circle", 0, steps.append)
    assert steps == list(range(config.steps))
    assert min(made.seconds.text, made.seconds.denoise, made.seconds.vae) > 0
    assert made.seconds.denoise > made.seconds.text


def test_sample_leaves_no_hook_behind(config):
    pipe = load_pipeline(config)
    sample(pipe, config, "a red circle", 0, ignore)
    assert not pipe.transformer._forward_pre_hooks


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_lost_latents_stop_the_run_and_name_the_step(config, bad):
    pipe = load_pipeline(config)
    calls = []

    def spoil(_module, _args, output):
        calls.append(1)
        return (output[0] * bad,) if len(calls) == 2 * 5 + 1 else output  # two branches a step: the sixth step

    pipe.transformer.register_forward_hook(spoil)
    with pytest.raises(RunFailed, match="after step 5 "):
        sample(pipe, config, "a red circle", 0, ignore)
    assert sample(pipe, config, "a red circle", 0, ignore).frames.isfinite().all()


def test_dtype_is_of_text_and_transformer_and_not_of_the_vae(composed, random_overrides):
    pipe = load_pipeline(composed(*random_overrides, "dtype=bfloat16"))
    assert (pipe.transformer.dtype, pipe.text_encoder.dtype, pipe.vae.dtype) == (
        torch.bfloat16, torch.bfloat16, torch.float32,
    )  # fmt: skip


def test_bfloat16_runs(composed, random_overrides):
    config = composed(*random_overrides, "dtype=bfloat16", "steps=2")
    assert sample(load_pipeline(config), config, "a red circle", 0, ignore).frames.shape == (5, 32, 32, 3)


@pytest.mark.parametrize(
    ("name", "kind"), [("euler", FlowMatchEulerDiscreteScheduler), ("unipc", UniPCMultistepScheduler)]
)
def test_scheduler_follows_the_config(composed, name, kind):
    scheduler = make_scheduler(composed(f"scheduler={name}", "flow_shift=5.0"))
    scheduler.set_timesteps(10)
    assert isinstance(scheduler, kind)
    # shift s maps a sigma in the middle of the schedule to s x / (1 + (s - 1) x), well above the unshifted 1/2
    assert scheduler.sigmas[5] > 0.75


def test_vae_tiling_reaches_the_vae(composed, random_overrides):
    assert load_pipeline(composed(*random_overrides, "vae_tiling=true")).vae.use_tiling


def test_compile_takes_the_repeated_blocks(composed, random_overrides):
    pipe = load_pipeline(composed(*random_overrides, "compile=true"))
    assert all(block._compiled_call_impl is not None for block in pipe.transformer.blocks)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("height=40", "height=40 .* 32 or 48"),
        ("width=8", "width=8 .* multiples of 16, e.g. 16"),
        ("num_frames=6", r"num_frames=6 .* 4 k \+ 1, e.g. 5 or 9"),
        ("height=4096", "height=4096 .* up to 512"),
        ("num_frames=1001", "num_frames=1001 .* up to 125"),
    ],
)
def test_sizes_are_checked_by_key(composed, random_overrides, override, message):
    with pytest.raises(ConfigError, match=message):
        load_pipeline(composed(*random_overrides, override))


def test_sizes_are_checked_before_weights_are_missed(composed, random_overrides, copied):
    (copied / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    broken = [*random_overrides, f"model.weights={copied}"]
    with pytest.raises(ConfigError, match="height=40"):
        load_pipeline(composed(*broken, "height=40"))
    with pytest.raises(ConfigError, match=r"lacks transformer/\*\.safetensors"):
        load_pipeline(composed(*broken))


def test_pickles_are_not_loaded(composed, random_overrides, copied):
    weights = copied / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ConfigError, match=r"lacks vae/\*\.safetensors"):
        load_pipeline(composed(*random_overrides, f"model.weights={copied}"))


def test_absent_shard_is_named(composed, random_overrides, copied):
    index = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}
    (copied / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    (copied / "transformer" / "part-1.safetensors").touch()
    with pytest.raises(ConfigError, match=r"transformer/part-2\.safetensors"):
        load_pipeline(composed(*random_overrides, f"model.weights={copied}"))


def test_other_pipelines_are_refused(composed, random_overrides, copied):
    index = json.loads((copied / "model_index.json").read_text())
    (copied / "model_index.json").write_text(json.dumps(index | {"_class_name": "my_code.Pipeline"}))
    with pytest.raises(ConfigError, match=r"is a my_code\.Pipeline; allowed: WanPipeline"):
        load_pipeline(composed(*random_overrides, f"model.weights={copied}"))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("builtin:nothing", "allowed: "),
        ("no/such/folder", "does not exist; allowed: a folder"),
        ("/", r"no model_index\.json"),
    ],
)
def test_wrong_weights_are_named(composed, weights, message):
    with pytest.raises(ConfigError, match=message):
        load_pipeline(composed(f"model.weights={weights}"))


@pytest.mark.parametrize(("model", "repository"), [("wan", "1.3B"), ("wan_14b", "14B")])
def test_offline_without_weights_says_what_to_download(composed, monkeypatch, tmp_path, model, repository):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError) as error:
        load_pipeline(composed(f"model={model}", "device=cpu"))
    message = str(error.value)
    assert "\n" not in message
    assert f"hf download Wan-AI/Wan2.1-T2V-{repository}-Diffusers" in message
    assert "GiB" in message
    assert str(tmp_path) in message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["device=tpu9"], "device='tpu9'"),
        (["device=cuda:99"], "device='cuda:99'"),
        (["device=meta"], "device='meta'"),
        (["device=cpu", "offload=model"], "offload='model'"),
        (["device=cpu", "offload=group"], "offload='group'"),
    ],
)
def test_devices_are_checked(composed, overrides, message):
    with pytest.raises(ConfigError, match=message):
        resolve_device(composed(*overrides))


def test_device_of_a_rank_is_its_own(composed, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert resolve_device(composed()) == torch.device("cuda:2")


def test_explicit_steps_outside_the_run_are_a_config_error(composed):
    with pytest.raises(ConfigError, match=r"schedule\.steps .* \(steps=20\)"):
        plan_steps(composed("schedule=explicit", "steps=20"))
