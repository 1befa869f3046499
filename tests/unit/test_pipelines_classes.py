"""Every pipeline class from its yaml to a video: call, schedulers, sizes, pictures, experts, records."""

import json
from dataclasses import replace

import diffusers
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler, UniPCMultistepScheduler
from PIL import Image
from pipelines_random import MODELS

from tapvideo import generate
from tapvideo.config import ConfigError
from tapvideo.generate import check_branches, expert_strip
from tapvideo.parallel.comm import Comm
from tapvideo.parallel.topology import alone
from tapvideo.pipeline import accelerated, latent_size, load_pipeline
from tapvideo.pipeline_kinds import KINDS
from tapvideo.run_folder import read_prompts, run_folder
from tapvideo.sample import call_arguments, sample
from tapvideo.schedule import StepKind
from tapvideo.schedulers import experts, make_scheduler, noise_levels, plan_steps
from tapvideo.video_io import video_info


def ignore(_step: int) -> None:
    pass


@pytest.mark.parametrize("model", MODELS)
def test_run_from_yaml_to_record_and_report(model_config, model):
    made = model_config(model, "compare=true")
    folder = generate.run(made)
    record = json.loads((folder / "run.json").read_text())
    (clip,) = record["clips"]
    assert clip["forecast_steps"] == [i for i, mark in enumerate(record["plan"]) if mark == "."]
    assert "." in record["plan"]
    assert clip["comparison"]["psnr"] > 5
    assert not clip["comparison"]["identical"]
    assert set(clip["shares"]) == {str(step) for step in clip["forecast_steps"]}
    assert set(record["experts"]) == set(experts(made))
    info = video_info(folder / clip["video"])
    assert (info.frames, info.width, info.height, info.fps) == (made.num_frames, 32, 32, made.fps)
    page = (folder / "report.html").read_text()
    assert ("steps by expert" in page) == (len(record["experts"]) == 2)


@pytest.mark.parametrize("model", MODELS)
def test_sample_equals_plain_diffusers_and_so_it_is_after_tap(model_config, model):
    made = model_config(model, "steps=12")
    pipe = load_pipeline(made)
    plain = sample(pipe, made, "a red circle", 3, ignore)
    result = pipe(**call_arguments(made, type(pipe), "a red circle", 3), output_type="np")
    frames = result.images if made.kind.makes_images else result.frames[0]
    assert torch.equal(plain.frames, torch.from_numpy(frames))
    with accelerated(pipe, made) as tap:
        assert not torch.equal(sample(pipe, made, "a red circle", 3, ignore).frames, plain.frames)
        planned = [i for i, kind in enumerate(plan_steps(made)) if kind is StepKind.FORECAST]
        assert tap.summary().forecast_steps == planned
    assert torch.equal(sample(pipe, made, "a red circle", 3, ignore).frames, plain.frames)


@pytest.mark.parametrize(
    ("kind", "overrides", "own", "absent"),
    [
        ("LTXPipeline", ["model=ltx"], {"frame_rate": 24, "guidance_rescale": 0.0, "decode_timestep": 0.0}, "eta"),
        ("HunyuanVideoPipeline", ["model=hunyuan"], {"true_cfg_scale": 1.0, "guidance_scale": 6.0}, "frame_rate"),
        ("CogVideoXPipeline", ["model=cogvideox_5b"], {"use_dynamic_cfg": True, "eta": 0.0}, "frame_rate"),
        ("WanPipeline", ["model=wan22"], {"guidance_scale": 4.0, "guidance_scale_2": 3.0}, "frame_rate"),
        ("FluxPipeline", ["model=flux"], {"guidance_scale": 3.5, "true_cfg_scale": 1.0}, "num_frames"),
        ("QwenImagePipeline", ["model=qwen_image"], {"true_cfg_scale": 4.0, "negative_prompt": " "}, "guidance_scale"),
    ],
)
def test_calls_have_what_the_class_takes_and_no_more(composed, kind, overrides, own, absent):
    made = composed(*overrides)
    arguments = call_arguments(made, getattr(diffusers, kind), "a red circle", 3)
    assert own.items() <= arguments.items()
    assert absent not in arguments
    shared = {"prompt": "a red circle", "negative_prompt": made.negative_prompt, "height": made.height}
    shared |= {"width": made.width, "num_inference_steps": made.steps}
    shared |= {"max_sequence_length": made.max_sequence_length}
    shared |= {} if made.kind.makes_images else {"num_frames": made.num_frames}
    assert shared.items() <= arguments.items()


@pytest.mark.parametrize("model", MODELS)
def test_noise_levels_are_those_of_the_run(model_config, model):
    """What a dry run shows is what the pipeline's scheduler does."""
    made = model_config(model)
    pipe = load_pipeline(made)
    sample(pipe, made, "a red circle", 0, ignore)
    levels = noise_levels(made)
    assert [t for _, t in levels] == pytest.approx(torch.as_tensor(pipe.scheduler.timesteps).tolist())
    if levels[0][0] is not None:
        assert [s for s, _ in levels] == pytest.approx(torch.as_tensor(pipe.scheduler.sigmas)[:-1].tolist())


@pytest.mark.parametrize("model", MODELS)
def test_latents_are_as_large_as_foreseen(model_config, model):
    fixed = model.startswith("cogvideox") or KINDS[model_config(model).model.pipeline].makes_images
    made = model_config(model, *([] if fixed else ["num_frames=13"]), "steps=2", "tap=off")
    pipe = load_pipeline(made)
    latents = sample(pipe, made, "a red circle", 0, ignore).latents
    t, h, w = latent_size(pipe, made)
    shapes = {"ltx": (t * h * w, 8), "ltx2": (t * h * w, 8), "cogvideox_2b": (t, 4, h, w), "cogvideox_5b": (t, 4, h, w)}
    shapes |= {"flux": (h * w, 16), "qwen_image": (h * w, 16), "cogview4": (4, h, w), "mochi": (12, t, h, w)}
    assert latents.shape[1:] == shapes.get(model, (4, t, h, w))


@pytest.mark.parametrize("model", MODELS)
def test_half_precision_runs(model_config, model):
    pipe = load_pipeline(made := model_config(model, "steps=2", "dtype=bfloat16"))
    assert pipe.transformer.dtype == torch.bfloat16
    dtypes = {"same": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
    assert pipe.vae.dtype == dtypes[made.kind.vae_dtype]
    if made.kind.vae_dtype != "float16" or torch.cuda.is_available():  # 3-D convolutions in fp16 are for GPUs
        assert sample(pipe, made, "a red circle", 0, ignore).frames.isfinite().all()


@pytest.mark.parametrize(("model", "weights"), [("ltx", None), ("ltx2", None), ("wan22_ti2v", None)])
def test_image_makes_an_image_to_video_pipeline_of_the_same_weights(model_config, picture, model, weights):
    made = model_config(model, f"image={picture}", weights=weights)
    pipe = load_pipeline(made)
    assert type(pipe).__name__ == made.kind.image_class
    with accelerated(pipe, made) as tap:
        frames = sample(pipe, made, "a red circle", 0, ignore).frames
        assert tap.summary().forecast_steps
    other = load_pipeline(model_config(model))
    assert not torch.equal(sample(other, model_config(model), "a red circle", 0, ignore).frames, frames)


def test_cogvideox_from_an_image(model_config, picture):
    names = ["model.pipeline=CogVideoXImageToVideoPipeline", f"image={picture}"]
    made = model_config("cogvideox_5b", *names, weights="cogvideox_i2v")
    pipe = load_pipeline(made)
    with accelerated(pipe, made) as tap:
        assert sample(pipe, made, "a red circle", 0, ignore).frames.shape == (9, 32, 32, 3)
        assert tap.summary().forecast_steps


@pytest.mark.parametrize(("model", "weights"), [("wan_i2v", "wan_flf"), ("wan22_i2v", None)])
def test_last_image_reaches_the_video(model_config, tmp_path, model, weights):
    last = tmp_path / "last.png"
    Image.new("RGB", (32, 32), (255, 0, 0)).save(last)
    made = [model_config(model, f"last_image={last}", "steps=2", weights=weights)]
    made.append(replace(made[0], last_image=made[0].image))
    pipe = load_pipeline(made[0])
    one, two = (sample(pipe, own, "a red circle", 0, ignore).frames for own in made)
    assert not torch.equal(one, two)


def test_last_image_is_refused_where_the_model_looks_at_one_picture(model_config, picture):
    with pytest.raises(ConfigError, match=r"last_image=.*first-and-last-frame"):
        load_pipeline(model_config("wan_i2v", f"last_image={picture}"))


def test_timestep_of_the_vae_is_passed_on(model_config):
    made = [
        model_config("ltx", "steps=2", f"model.call.decode_timestep={t}", weights="ltx_timestep_vae")
        for t in (0.0, 0.3)
    ]
    pipe = load_pipeline(made[0])
    one, two = (sample(pipe, own, "a red circle", 0, ignore) for own in made)
    assert torch.equal(one.latents, two.latents)
    assert not torch.equal(one.frames, two.frames)


def test_true_guidance_is_two_branches(model_config):
    made = model_config("hunyuan", "model.call.true_cfg_scale=4.0", "negative_prompt=left")
    assert made.is_guided
    assert not model_config("hunyuan").is_guided
    pipe = load_pipeline(made)
    with accelerated(pipe, made) as tap:
        sample(pipe, made, "a red circle", 0, ignore)
        assert {record.branch for record in tap.trace.records} == {"cond", "uncond"}


def test_experts_warm_up_where_they_take_over(model_config):
    made = model_config("wan22", "steps=20", "schedule.warmup=2")
    split = experts(made)
    assert [*split["transformer"], *split["transformer_2"]] == list(range(20))
    edge = split["transformer_2"].start
    assert 0 < edge < 20
    assert noise_levels(made)[edge - 1][1] >= 875 > noise_levels(made)[edge][1]
    plan = plan_steps(made)
    assert plan[edge] is plan[edge + 1] is StepKind.FULL
    strips = expert_strip(made, plan).split("|")
    assert [len(part) for part in strips] == [edge, 20 - edge]
    folder = generate.run(made)
    record = json.loads((folder / "run.json").read_text())
    assert record["experts"] == {"transformer": [0, edge], "transformer_2": [edge, 20]}
    assert record["clips"][0]["forecast_steps"] == [i for i, mark in enumerate(record["plan"]) if mark == "."]


def test_guidance_of_the_second_expert_is_its_own(model_config):
    made = [model_config("wan22", "steps=12", f"model.call.guidance_scale_2={g}") for g in (1.5, 6.0)]
    pipe = load_pipeline(made[0])
    one, two = (sample(pipe, own, "a red circle", 0, ignore).latents for own in made)
    assert not torch.equal(one, two)


@pytest.mark.parametrize(
    ("name", "kind", "spacing"),
    [("model", CogVideoXDDIMScheduler, "trailing"), ("ddim", CogVideoXDDIMScheduler, "trailing"),
     ("dpm", CogVideoXDPMScheduler, "trailing")],
)  # fmt: skip
def test_schedulers_of_cogvideox_keep_what_is_stored(model_config, name, kind, spacing):
    scheduler = make_scheduler(model_config("cogvideox_5b", f"scheduler={name}"))
    assert isinstance(scheduler, kind)
    assert scheduler.config["timestep_spacing"] == spacing
    assert scheduler.config["snr_shift_scale"] == 1.0  # not the class's 3.0


def test_unipc_of_ltx_has_the_noise_levels_of_its_own_scheduler(model_config):
    own, unipc = (noise_levels(model_config("ltx", f"scheduler={name}")) for name in ("model", "unipc"))
    assert isinstance(make_scheduler(model_config("ltx", "scheduler=unipc")), UniPCMultistepScheduler)
    assert [s for s, _ in unipc] == pytest.approx([s for s, _ in own], abs=2e-3)


def test_pictures_count_by_their_bytes(model_config, picture, tmp_path):
    def name(path):
        own = model_config("wan_i2v", f"image={path}")
        return run_folder(own, read_prompts(own)).name

    before, copy = name(picture), tmp_path / "copy.png"
    copy.write_bytes(picture.read_bytes())
    assert name(copy) == before
    Image.new("RGB", (8, 8)).save(picture)
    assert name(picture) != before


def test_fused_guidance_cannot_be_split(model_config):
    halves = Comm()
    halves.size = 2
    topology = replace(alone(), cfg=halves)
    for model, message in (("ltx", "once for both branches"), ("hunyuan", "model.call.true_cfg_scale=1 has one")):
        with pytest.raises(ConfigError, match=message):
            check_branches(model_config(model), topology)
    check_branches(model_config("hunyuan", "model.call.true_cfg_scale=2"), topology)


def test_dry_run_without_weights_says_what_it_does_not_know(composed, capsys):
    generate.run(composed("model=ltx", "dry_run=true", "model.weights=/nowhere", "steps=14"))
    out = capsys.readouterr().out
    assert "###...#...#..#" in out
    assert "sigmas and timesteps are not known: model.weights='/nowhere'" in out


def test_dry_run_shows_a_bar_between_experts(model_config, capsys):
    generate.run(model_config("wan22", "dry_run=true"))
    assert "|" in capsys.readouterr().out
