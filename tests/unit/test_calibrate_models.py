"""Calibrations of models other than Wan: fused guidance, dual streams, steps that nobody tells."""

import json

import pipelines_random
import pytest
from hydra import compose, initialize_config_dir

from tapvideo import calibrate, generate
from tapvideo.calibrate import CalibrateConfig
from tapvideo.calibration import load_calibration
from tapvideo.config import GenerateConfig, config_dir, from_hydra


@pytest.mark.parametrize("model", ["ltx", "hunyuan", "cogvideox_2b", "hunyuan15", "hunyuan_i2v", "wan22", "wan22_i2v"])
def test_a_calibration_is_made_found_and_used(model, picture, tmp_path, monkeypatch):
    monkeypatch.setenv("TAPVIDEO_HOME", str(tmp_path / "home"))
    folder = pipelines_random.save(model, tmp_path / "weights")
    small = [
        f"model={model}", f"model.weights={folder}", "steps=12", "height=32", "width=32", "num_frames=9",
        "dtype=float32", "max_sequence_length=16", "prompt='a red circle'", "verbose=false",
    ]  # fmt: skip
    small += [f"image={picture}"] if model in pipelines_random.WITH_IMAGE else []
    with initialize_config_dir(str(config_dir().resolve()), version_base="1.3"):
        own = ["probes=2", "probe_clips=1", "rehearsal_clips=1", "speedups=[2.0]", "seeds=[3]"]
        asked = from_hydra(CalibrateConfig, compose("calibrate", [*small, *own]))
        used = ["tap=default", "schedule.speedup=2.0", f"output_dir={tmp_path / 'out'}", "compare=true"]
        made = GenerateConfig.from_hydra(compose("generate", [*small, *used]))
    found = load_calibration(calibrate.run(asked))
    folder = generate.run(made)
    assert "uncalibrated" not in folder.name
    record = json.loads((folder / "run.json").read_text())
    assert record["clips"][0]["full_steps"] == found.best_steps(6)
    assert record["config"]["tap"]["blend"] == 0.5
    assert record["clips"][0]["comparison"]["speedup"] > 0  # both sides were warm, with a calibration of other runs
