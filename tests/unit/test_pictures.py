"""Models that make pictures, and pipelines that tell less than others: from the yaml to files and reports."""

import json

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler
from hydra import compose, initialize_config_dir
from PIL import Image

from tapvideo import generate
from tapvideo.batch import run as batch
from tapvideo.batch.config import BatchConfig
from tapvideo.config import ConfigError, config_dir, from_hydra
from tapvideo.models.clock import RunClock
from tapvideo.pipeline import accelerated, load_pipeline
from tapvideo.sample import RunFailed, check_call, sample, watched
from tapvideo.schedulers import make_scheduler, noise_levels
from tapvideo.video_io import video_info, write_png


def ignore(_step: int) -> None:
    pass


def test_a_png_holds_eight_bits_of_every_value(tmp_path):
    ramp = torch.linspace(-0.1, 1.1, 5 * 7 * 3).view(5, 7, 3)
    write_png(tmp_path / "a.png", ramp)
    expected = (ramp.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    assert (np.asarray(Image.open(tmp_path / "a.png")) == expected).all()
    info = video_info(tmp_path / "a.png")
    assert (info.frames, info.width, info.height) == (1, 7, 5)
    with pytest.raises(ValueError, match="NaN"):
        write_png(tmp_path / "b.png", ramp / 0)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    (tmp_path / "c.png").write_text("no picture")
    with pytest.raises(OSError, match="not a PNG"):
        video_info(tmp_path / "c.png")


@pytest.mark.parametrize("model", ["flux", "qwen_image"])
def test_a_run_writes_pictures_and_shows_them(model_config, model):
    folder = generate.run(model_config(model, "compare=true", "seeds=[0,1]"))
    record = json.loads((folder / "run.json").read_text())
    assert [c["video"] for c in record["clips"]] == [f"000-a-red-circle-seed{s}/image.png" for s in (0, 1)]
    assert (folder / record["clips"][0]["comparison"]["baseline"]).name == "baseline.png"
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64") == 4
    assert "<video" not in page
    assert "Difference</b> of the two pictures" in page
    assert ">32x32, png<" in page


def test_a_batch_of_pictures_has_their_suffix(model_config, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\nmoving left\n")
    one = model_config("flux")
    keys = ["model=flux", f"model.weights={one.model.weights}", "height=32", "width=32", "num_frames=1", "steps=12"]
    keys += ["tap=paper", "dtype=float32", f"prompt_file={prompts}", f"output_dir={tmp_path / 'out'}", "seeds=[3]"]
    with initialize_config_dir(str(config_dir().resolve()), version_base="1.3"):
        batch.run(from_hydra(BatchConfig, compose("batch", keys)))
    (videos,) = (tmp_path / "out").glob("*/videos")
    assert sorted(p.name for p in videos.iterdir()) == ["a red circle-0.png", "moving left-0.png"]
    assert Image.open(videos / "a red circle-0.png").size == (32, 32)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=flux", "num_frames=5"], r"num_frames=5: a FluxPipeline makes pictures; allowed: 1"),
        (["model=cogview4", "image=x.png"], r"image='x.png': a CogView4Pipeline makes pictures from text alone"),
        (["model=mochi", "scheduler=euler"], r"scheduler='euler' does not go with a MochiPipeline; allowed: model"),
    ],
)
def test_what_pictures_cannot_be(composed, overrides, message):
    with pytest.raises(ConfigError, match=message):
        composed(*overrides)


def test_the_size_that_a_picture_decides_is_named(model_config):
    made = model_config("hunyuan15_i2v", "height=32", "width=64")
    with pytest.raises(ConfigError, match=r"height=32 and width=64: .* one area.*; allowed: height=\d+ width=\d+$"):
        load_pipeline(made)


def test_arguments_that_no_yaml_can_write_are_not_offered(model_config):
    made = model_config("flux", "+model.call.nothing=1")
    kind = type(load_pipeline(model_config("flux")))
    with pytest.raises(ConfigError, match=r"model\.call\.nothing=1 is no argument of a Flux.*; allowed: true_cfg"):
        check_call(made, kind)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_guidance_reaches_the_guider_and_its_branches_have_our_names(model_config, guidance):
    made = model_config("hunyuan15", f"guidance={guidance}", "steps=12")
    pipe = load_pipeline(made)
    assert pipe.guider.guidance_scale == guidance
    with accelerated(pipe, made) as tap:
        sample(pipe, made, "a red circle", 0, ignore)
        assert {r.branch for r in tap.trace.records} == ({"cond", "uncond"} if guidance > 1 else {"cond"})
        assert tap.summary().forecast_steps


def test_true_guidance_of_flux_is_two_branches(model_config):
    made = model_config("flux", "model.call.true_cfg_scale=3.0", "negative_prompt=left")
    assert made.is_guided
    assert not model_config("flux").is_guided
    pipe = load_pipeline(made)
    with accelerated(pipe, made) as tap:
        sample(pipe, made, "a red circle", 0, ignore)
        assert {r.branch for r in tap.trace.records} == {"cond", "uncond"}


@pytest.mark.parametrize("model", ["flux", "qwen_image", "hunyuan15"])
def test_unipc_in_the_place_of_the_models_own_scheduler(model_config, model):
    made = model_config(model, "scheduler=unipc", "steps=3")
    assert isinstance(make_scheduler(made), UniPCMultistepScheduler)
    pipe = load_pipeline(made)
    sample(pipe, made, "a red circle", 0, ignore)
    assert [t for _, t in noise_levels(made)] == pytest.approx(pipe.scheduler.timesteps.tolist())


def test_a_step_that_somebody_put_on_the_scheduler_is_put_back():
    pipe = Quiet()
    own = pipe.scheduler.step
    pipe.scheduler.step = own
    with watched(pipe, lambda step, latents: None):
        assert pipe.scheduler.step is not own
    assert vars(pipe.scheduler)["step"] is own


def test_a_guider_below_one_has_two_branches(model_config):
    assert model_config("hunyuan15", "guidance=0.5").is_guided
    assert not model_config("hunyuan15", "guidance=1").is_guided
    assert not model_config("qwen_image", "guidance=0.5").is_guided


class Quiet:
    """A pipeline whose call takes no callback."""

    def __init__(self):
        self.scheduler = UniPCMultistepScheduler()

    def __call__(self, prompt):
        """Nothing."""


def test_a_scheduler_tells_steps_where_the_call_takes_no_callback():
    pipe, seen = Quiet(), []
    pipe.scheduler.set_timesteps(3)
    latents = torch.randn(1, 2, 4, 4)
    with watched(pipe, lambda step, now: seen.append((step, now))) as more:
        assert more == {}
        for timestep in pipe.scheduler.timesteps:
            latents = pipe.scheduler.step(latents, timestep, latents, return_dict=False)[0]
    assert [step for step, _ in seen] == [0, 1, 2]
    assert seen[-1][1] is latents
    assert "step" not in vars(pipe.scheduler)


def test_a_scheduler_is_left_as_it_was_by_a_run_that_fails():
    def fail(step, latents):
        raise RunFailed("lost")

    pipe = Quiet()
    pipe.scheduler.set_timesteps(2)
    with pytest.raises(RunFailed), watched(pipe, fail):
        pipe.scheduler.step(torch.ones(1, 2), pipe.scheduler.timesteps[0], torch.ones(1, 2))
    assert "step" not in vars(pipe.scheduler)


def test_timesteps_that_go_up_are_one_run():
    """As Mochi's: without the hint every call would begin a run of its own, and nothing would be forecast."""
    clock = RunClock(lambda: 3, lambda: True)
    caller = (0, "cond_uncond")
    runs = [clock.counted(caller, clock.descending(t), 3) for t in (0.0, 10.0, 400.0)]
    assert runs == [(1, 0), (1, 1), (1, 2)]
    assert clock.counted(caller, clock.descending(0.0), 3) == (2, 0)


def test_texts_longer_than_a_pipeline_takes_are_refused_at_once(composed):
    with pytest.raises(ConfigError, match="max_sequence_length=513 is too long for a FluxPipeline; allowed: up to 512"):
        composed("model=flux", "max_sequence_length=513")


def test_a_folder_that_cannot_be_made_is_named(model_config, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"output_dir='.*file/deeper' cannot be made \(Not a directory\); allowed"):
        generate.run(model_config("flux", f"output_dir={tmp_path / 'file' / 'deeper'}"))


def test_a_dry_run_by_a_calibration_needs_no_weights(composed, capsys):
    generate.run(composed("model=flux", "tap=default", "dry_run=true", "model.weights=/nowhere", "steps=14"))
    assert "6 full and 8 forecast of 14 steps" in capsys.readouterr().out
