"""LTX-2 through its own pipelines: video and sound, guidance by perturbed blocks and by streams kept apart."""

from dataclasses import replace

import imageio_ffmpeg
import ltx2_random
import pytest
import torch
from PIL import Image
from pipelines_parts import tokenizer

from tapvideo import ScheduleConfig, TapConfig, enable_tap, generate
from tapvideo.config import ConfigError, RecomputeConfig
from tapvideo.memory import kept_on_this_rank
from tapvideo.parallel.kept import kept_bytes
from tapvideo.parallel.topology import alone
from tapvideo.pipeline import accelerated, load_pipeline
from tapvideo.sample import RunFailed, Sample, StageSeconds, call_arguments, check_frames, sample
from tapvideo.video_io import Sound

EVERY_STEP = TapConfig(schedule=ScheduleConfig(interval=1))
TAP = TapConfig(schedule=ScheduleConfig(kind="explicit", steps=[0, 1, 2, 5], warmup=1, min_steps=0))
STEPS = 7


@pytest.fixture(scope="module", params=["LTX-2", "LTX-2.3"])
def text_pipe(request):
    kind = ltx2_random.random_transformer if request.param == "LTX-2" else ltx2_random.random_newer_transformer
    return ltx2_random.random_pipeline(tokenizer(), transformer=kind(heads=2))


@pytest.fixture(params=["text", "image"])
def pipe(request, text_pipe):
    return text_pipe if request.param == "text" else ltx2_random.from_image(text_pipe)


def made(pipe, **changes):
    """Latents of video and sound, with all guidance that the class has by default; block 1 is perturbed."""
    image = {"image": Image.new("RGB", (32, 32), (200, 30, 0)), "image_crf": 0}
    out = pipe(
        prompt="a red circle",
        height=32,
        width=32,
        num_frames=9,
        num_inference_steps=STEPS,
        max_sequence_length=16,
        spatio_temporal_guidance_blocks=[1],
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        **({} if "Image" not in type(pipe).__name__ else image),
        **changes,
    )
    return out.frames, out.audio


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_interval_one_is_plain_diffusers_and_forecasts_reach_both_streams(pipe):
    plain = made(pipe)
    tap = enable_tap(pipe, EVERY_STEP)
    assert same(made(pipe), plain)
    tap.disable()
    tap = enable_tap(pipe, TAP)
    forecast = made(pipe)
    assert all(torch.isfinite(f).all() and not torch.equal(f, p) for f, p in zip(forecast, plain, strict=True))
    assert tap.summary().forecast_steps == [3, 4, 6]
    assert {r.branch for r in tap.trace.records} == {"cond_uncond", "uncond_stg", "uncond_modality"}
    assert same(made(pipe), forecast)
    tap.disable()
    assert same(made(pipe), plain)


def test_recomputing_everything_is_a_full_step_of_both_streams(pipe):
    plain = made(pipe)
    tap = enable_tap(pipe, replace(TAP, recompute=RecomputeConfig(budget=1.0)))
    found = made(pipe)
    tap.disable()
    for a, b in zip(found, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert same(made(pipe), plain)


@pytest.mark.parametrize("changes", [{}, {"kv_dtype": "fp8"}, {"kv_layers": [1]}])
def test_kept_keys_and_values_are_as_many_as_promised(changes):
    """The sound's attention to the video keeps some too; of anchors, the sound's come on top."""
    transformer = ltx2_random.random_transformer()
    config = replace(TAP, recompute=RecomputeConfig(budget=0.2, **changes))
    tap = enable_tap(transformer, config)
    for step in range(5):
        with torch.no_grad(), transformer.cache_context("one", step_index=step, num_inference_steps=STEPS):
            call = ltx2_random.inputs(transformer, ltx2_random.noise(transformer), 700.0 - step, "uncond_modality")
            transformer(**call, return_dict=False)
    promised = kept_on_this_rank(transformer, config, alone(), latent_size=(3, 5, 7), num_steps=STEPS, branches=1)
    summary = tap.summary()
    sound = 2 * 3 * ltx2_random.AUDIO * 8 * 6 * 4  # streams, anchors, tokens, width, bytes
    assert summary.state_bytes == promised.anchors + sound
    layers, kv_dtype = (1 if "kv_layers" in changes else 3), config.recompute.kv_dtype
    kinds = [(105 * 96 * 2 * layers, 16), (105 * 48 * 2 * layers, 8)]
    video, beside = (kept_bytes(n, dim, dtype=torch.float32, kv_dtype=kv_dtype) for n, dim in kinds)
    assert promised.kv == video + beside
    assert summary.kv_bytes == video  # streams that are kept apart never ask for the second kind
    with torch.no_grad(), transformer.cache_context("two", step_index=0, num_inference_steps=STEPS):
        call = ltx2_random.inputs(transformer, ltx2_random.noise(transformer), 700.0, "uncond_stg")
        transformer(**call, return_dict=False)
    assert tap.trace.kv_bytes["two"] == promised.kv


def outputs(transformer, **changes):
    with torch.no_grad(), transformer.cache_context("one", step_index=0, num_inference_steps=20):
        call = ltx2_random.inputs(transformer, ltx2_random.noise(transformer), 700.0, "cond_uncond", cross=True)
        return transformer(**{**call, **changes}, return_dict=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"spatio_temporal_guidance_blocks": [0]},
        {"spatio_temporal_guidance_blocks": [2, 40]},  # the model has no block 40, and does not mind
        {"spatio_temporal_guidance_blocks": [1], "perturbation_mask": torch.tensor([0.0, 1.0])},
        {"spatio_temporal_guidance_blocks": [0, 2], "perturbation_mask": torch.tensor([1.0, 0.0])[:, None, None]},
    ],
)
@pytest.mark.parametrize("config", [EVERY_STEP, replace(TAP, recompute=RecomputeConfig(budget=0.3))])
def test_blocks_are_perturbed_as_the_model_perturbs_them(changes, config):
    transformer = ltx2_random.random_newer_transformer()
    plain, other = outputs(transformer, **changes), outputs(transformer)
    enable_tap(transformer, config)
    assert same(outputs(transformer, **changes), plain)
    assert same(outputs(transformer), other)  # what one call asks for, the next one does not get
    assert not torch.equal(plain[0], other[0])


def test_a_mask_among_the_videos_tokens_is_refused_where_they_are_recomputed():
    transformer, mask = ltx2_random.random_transformer(), torch.ones(2, 105, 105)
    mask[:, :, 50:] = 0.5
    plain = outputs(transformer, video_self_attention_mask=mask)
    tap = enable_tap(transformer, EVERY_STEP)
    assert same(outputs(transformer, video_self_attention_mask=mask), plain)
    tap.disable()
    enable_tap(transformer, replace(TAP, recompute=RecomputeConfig(budget=0.3)))
    with pytest.raises(ValueError, match="do not work with video_self_attention_mask"):
        outputs(transformer, video_self_attention_mask=mask)


def test_interleaved_rotary_tables_go_by_position_too():
    transformer = ltx2_random.random_transformer(rope_type="interleaved")
    plain = outputs(transformer)
    enable_tap(transformer, replace(TAP, recompute=RecomputeConfig(budget=1.0)))
    for step in range(5):
        with torch.no_grad(), transformer.cache_context("one", step_index=step, num_inference_steps=STEPS):
            call = ltx2_random.inputs(transformer, ltx2_random.noise(transformer), 700.0, "cond_uncond", cross=True)
            found = transformer(**call, return_dict=False)
        for a, b in zip(found, plain, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_a_run_writes_the_sound_that_the_pipeline_makes(model_config):
    made = model_config("ltx2", "compare=true", "steps=12")
    folder = generate.run(made)
    for path in sorted(folder.rglob("*.mp4")):
        meta = next(imageio_ffmpeg.read_frames(str(path)))
        assert meta["audio_codec"] == "aac"
    pipe = load_pipeline(made)
    plain = sample(pipe, made, "a red circle", 3, lambda _: None)
    result = pipe(**call_arguments(made, type(pipe), "a red circle", 3), output_type="pt")
    assert torch.equal(plain.sound.waves, result.audio[0])
    assert plain.sound.rate == 16000
    with accelerated(pipe, made):
        assert not torch.equal(sample(pipe, made, "a red circle", 3, lambda _: None).sound.waves, plain.sound.waves)


def test_a_step_of_the_yaml_is_one_call(model_config):
    made = model_config("ltx2", "steps=12")
    pipe = load_pipeline(made)
    with accelerated(pipe, made) as tap:
        sample(pipe, made, "a red circle", 3, lambda _: None)
        assert {record.branch for record in tap.trace.records} == {"cond_uncond"}


def test_sound_that_is_lost_stops_a_run():
    sound = Sound(torch.tensor([[0.0, torch.nan]]), 16000)
    seconds = StageSeconds(text=0.0, denoise=0.0, vae=0.0)
    lost = Sample(torch.zeros(1, 32, 32, 3), torch.zeros(1, 2), seconds, sound)
    with pytest.raises(RunFailed, match=r"the vocoder made NaN or infinite sound \(seed 3\); try dtype=float32"):
        check_frames(lost, 3)
    check_frames(replace(lost, sound=None), 3)


def test_a_picture_wants_pyav(model_config, picture, monkeypatch):
    monkeypatch.setattr("tapvideo.pipeline.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"LTX2ImageToVideoPipeline compresses it with PyAV.*image_crf=0") as error:
        load_pipeline(model_config("ltx2", f"image={picture}"))
    assert "\n" not in str(error.value)
    load_pipeline(model_config("ltx2", f"image={picture}", "+model.call.image_crf=0"))
