"""Fixtures of the unit tests."""

import batches
import pipelines_random
import pytest
import torch
import wan_random
from hydra import compose, initialize_config_dir
from PIL import Image

from tapvideo.calibrate import CalibrateConfig
from tapvideo.calibration import find as finding
from tapvideo.config import config_dir, from_hydra

SMALL = ["height=32", "width=32", "steps=14", "prompt='a red circle'", "verbose=false", "dtype=float32"]
CALIBRATE = ("steps=12", "probes=2", "probe_clips=1", "rehearsal_clips=1", "speedups=[2.0]", "tokens=6", "seeds=[3]")
TEXT = {"cogvideox_2b": 16, "cogvideox_5b": 16, "wan_i2v": 512, "skyreels_i2v": 512}


@pytest.fixture(scope="session")
def wan():
    """Builders of tiny random Wan models: `random_transformer`, `random_pipeline`, `denoise`."""
    return wan_random


@pytest.fixture
def pipe(wan):
    """A tiny random `WanPipeline`."""
    return wan.random_pipeline()


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Folders of tiny pipelines, each made when it is first asked for."""
    made = {}

    def folder(name):
        if name not in made:
            made[name] = pipelines_random.save(name, tmp_path_factory.mktemp("weights") / name)
        return made[name]

    return folder


@pytest.fixture
def picture(tmp_path):
    """A picture on disk, of another size than the video."""
    noise = torch.randint(0, 256, (40, 50, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    path = tmp_path / "picture.png"
    Image.fromarray(noise.numpy()).save(path)
    return path


@pytest.fixture
def model_config(composed, saved, picture, tmp_path):
    """The config of a model's yaml on its tiny pipeline."""

    def make(model, *overrides, weights=None):
        base = [*SMALL, f"model.weights={saved(weights or model)}", f"output_dir={tmp_path / 'out'}"]
        base += [f"max_sequence_length={TEXT.get(model, 24)}", f"num_frames={pipelines_random.FRAMES.get(model, 9)}"]
        base += [f"image={picture}"] if model in pipelines_random.WITH_IMAGE else []
        return composed(f"model={model}", *base, *overrides)

    return make


@pytest.fixture
def batch_overrides(saved_pipeline, tmp_path):
    """What names a batch of four prompts on a tiny model."""
    return batches.overrides_of(saved_pipeline, tmp_path)


@pytest.fixture
def batch(batch_overrides):
    """A batch of them whose folder is there."""
    return batches.begun(batch_overrides)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The user's folder of calibrations, empty; nothing ships."""
    monkeypatch.setenv("TAPVIDEO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(finding, "SHIPPED", tmp_path / "shipped")
    return tmp_path / "home" / "calibrations"


@pytest.fixture
def asked(random_overrides):
    """Compose `conf/calibrate.yaml` for the random pipeline, as the command line does."""

    def compose_config(*overrides):
        with initialize_config_dir(str(config_dir().resolve()), version_base="1.3"):
            return from_hydra(CalibrateConfig, compose("calibrate", [*random_overrides, *CALIBRATE, *overrides]))

    return compose_config
