"""Calibrated weights blended with what the probe chose."""

import pytest
import torch
from calibrations import made_up

from tapvideo.config import ConfigError, ScheduleConfig, TapConfig
from tapvideo.enable import enable_tap
from tapvideo.predictors import candidate_bank

STEPS = 12
EXPLICIT = {"kind": "explicit", "steps": [0, 1, 2, 6, 10], "warmup": 1, "min_steps": 0}


def config(path, **forecast):
    return TapConfig(calibration=str(path), schedule=ScheduleConfig(**EXPLICIT), **forecast)


@pytest.fixture
def path(tmp_path):
    made_up(steps=STEPS).save(tmp_path / "made.safetensors")
    return tmp_path / "made.safetensors"


def test_candidates_are_judged_as_they_are_and_applied_with_their_share():
    bank = candidate_bank(
        [4.0, 2.0, 0.0], 5.0, steps_ahead=1, family="taylor", orders=[0, 1], lookback=0.0, spacing=1.0
    )
    mixed = bank.blended([0.5, 0.25, 0.25], 0.25)
    assert torch.equal(mixed.weights, bank.weights)
    torch.testing.assert_close(mixed.applied, torch.tensor([[0.875, 0.0625, 0.0625], [1.25, -0.3125, 0.0625]]))
    assert torch.equal(bank.applied, bank.weights)


def test_no_share_is_the_paper_and_the_whole_is_the_calibration(wan, path):
    """Ends of the scale: the probe chooses in vain where all of the weights are calibrated."""
    pipe = wan.random_pipeline()

    def made(**forecast):
        tap = enable_tap(pipe, config(path, **forecast))
        latents = wan.denoise(pipe, steps=STEPS)
        tap.disable()
        return latents

    paper, calibrated, half = made(), made(family="calibrated"), made(blend=0.5)
    assert torch.equal(made(blend=0.0), paper)
    torch.testing.assert_close(made(blend=1.0), calibrated, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(half, paper, atol=1e-4)
    assert not torch.allclose(half, calibrated, atol=1e-4)


def test_branches_have_weights_of_their_own(wan, path):
    pipe = wan.random_pipeline()
    tap = enable_tap(pipe, config(path, blend=0.5))
    wan.denoise(pipe, steps=STEPS)
    applied = {key[0]: bank.applied for key, bank in tap._stacks[0]._banks._made.items() if key[5] == 3.0}
    assert set(applied) == {"cond", "uncond"}
    assert not torch.equal(applied["cond"], applied["uncond"])


def test_a_share_is_between_none_and_all():
    with pytest.raises(ConfigError, match=r"tap\.blend=1\.5 is a share; allowed: 0 to 1"):
        TapConfig(blend=1.5)
    with pytest.raises(ConfigError, match=r"tap\.blend=-0\.5 is too small"):
        TapConfig(blend=-0.5)
    with pytest.raises(ConfigError, match=r"tap\.coordinate='sigma' is not for calibrated weights"):
        TapConfig(blend=0.5, coordinate="sigma")
