"""What a pipeline's class cannot do is refused in one line, before anything is made."""

import pytest

from tapvideo import generate
from tapvideo.config import ConfigError
from tapvideo.pipeline import load_pipeline


@pytest.mark.parametrize(
    ("model", "overrides", "message"),
    [
        ("ltx", ["height=48"], "height=48 .* 32 or 64"),
        ("ltx", ["num_frames=8"], r"num_frames=8 .* 4 k \+ 1"),
        ("hunyuan", ["width=40"], "width=40 .* 32 or 48"),
        ("cogvideox_2b", ["height=24"], "height=24 .* 16 or 32"),
        ("cogvideox_2b", ["num_frames=11"], r"num_frames=11 .* 4 k \+ 1"),
        ("ltx", ["model.call.true_cfg_scale=2"], r"model\.call\.true_cfg_scale=2 is no argument .* decode_timestep"),
        ("wan22", ["model.boundary=null"], r"model\.boundary=None.*two experts.*allowed: 0\.875"),
        ("wan22_ti2v", ["model.boundary=0.9"], r"model\.boundary=0\.9.*one transformer; allowed: null"),
        ("wan22_ti2v", ["image=PICTURE", "last_image=PICTURE"], "last_image=.* does not go|last_image=.*last frame"),
        ("ltx", ["model.pipeline=HunyuanVideoPipeline", "scheduler=euler"], "is a LTXPipeline; allowed: Hunyuan"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(model_config, picture, model, overrides, message):
    overrides = [o.replace("PICTURE", str(picture)) for o in overrides]
    if any("true_cfg" in o or "boundary=0.9" in o for o in overrides):
        overrides = [o.replace("model.call.true", "+model.call.true") for o in overrides]
    with pytest.raises(ConfigError, match=message) as error:
        load_pipeline(model_config(model, *overrides))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=cogvideox_2b", "scheduler=unipc"], "scheduler='unipc' does not go .* allowed: dpm, ddim, model"),
        (["model=ltx", "scheduler=euler"], "scheduler='euler' .* allowed: model, unipc"),
        (["model=hunyuan", "image=x.png"], "image='x.png': a HunyuanVideoPipeline .* text alone"),
        (["model=ltx", "last_image=x.png"], "last_image='x.png': a LTXPipeline knows no last frame"),
        (["model=wan", "model.pipeline=MyPipeline"], "model.pipeline='MyPipeline'"),
        (["model=wan22", "model.boundary=2"], "model.boundary=2"),
        (["model=ltx", "model.call.decode_timestep={a: 1}"], "model.call.decode_timestep=.* no plain value"),
    ],
)
def test_configs_that_no_pipeline_takes(composed, overrides, message):
    with pytest.raises(ConfigError, match=message):
        composed(*overrides)


@pytest.mark.parametrize("content", [None, b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_pictures_that_are_none(model_config, tmp_path, content):
    path = tmp_path / "broken.png"
    if content is not None:
        path.write_bytes(content)
    made = model_config("wan_i2v", f"image={path}")
    with pytest.raises(ConfigError, match=r"image='.*broken\.png' cannot be read .*; allowed: the path") as error:
        generate.run(made)
    assert "\n" not in str(error.value)


def test_image_to_video_without_an_image_says_so(composed):
    with pytest.raises(ConfigError, match="image=None, and a WanImageToVideoPipeline needs one"):
        generate.run(composed("model=wan_i2v", "dry_run=true"))


def test_text_to_video_weights_refuse_an_image(composed, random_overrides, picture):
    with pytest.raises(ConfigError, match=r"image=.*makes videos from text alone"):
        load_pipeline(composed(*random_overrides, f"image={picture}"))
