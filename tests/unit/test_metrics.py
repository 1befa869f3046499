"""Fidelity metrics against their formulas."""

import inspect
import math

import pytest
import torch

from tapvideo.metrics import psnr, ssim


def _clip(frames: int = 3, side: int = 24) -> torch.Tensor:
    return 0.2 + 0.5 * torch.rand(frames, side, side, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("offset", [0.25, 0.01, 1e-4])
def test_psnr_of_a_constant_offset_is_minus_20_log10_of_it(offset: float):
    clip = _clip().double()
    assert psnr(clip + offset, clip) == pytest.approx(-20 * math.log10(offset), abs=1e-6)


def test_psnr_of_equal_clips_is_infinite():
    assert psnr(_clip(), _clip()) == math.inf


def test_psnr_pools_the_error_over_the_clip():
    clip = _clip(frames=4).double()
    other = clip.clone()
    other[2] += 0.1  # one frame in four differs: mse 0.01 / 4, where a mean over frames would be infinite
    assert psnr(other, clip) == pytest.approx(-10 * math.log10(0.01 / 4), abs=1e-9)


def test_ssim_of_equal_clips_is_one():
    assert ssim(_clip(), _clip()) == pytest.approx(1.0, abs=1e-6)


def test_ssim_of_flat_frames_is_the_luminance_term():
    a, b, stabiliser = 0.4, 0.6, 0.01**2
    flat = torch.ones(2, 16, 16, 3, dtype=torch.float64)
    expected = (2 * a * b + stabiliser) / (a * a + b * b + stabiliser)
    assert ssim(flat * a, flat * b) == pytest.approx(expected, abs=1e-6)


def test_ssim_is_the_mean_over_frames():
    clip = _clip(frames=4)
    other = clip.clone()
    other[0] = 1 - other[0]
    expected = (ssim(other[:1], clip[:1]) + 3) / 4
    assert ssim(other, clip) == pytest.approx(expected, abs=1e-6)
    assert expected < 0.9


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_metrics_refuse_what_they_cannot_compare(metric):
    metric = inspect.unwrap(metric)  # as users call it: the tests' checker of annotations would speak first
    clip = _clip()
    with pytest.raises(ValueError, match=r"\(3, 24, 24, 3\) with one of \(2, 24, 24, 3\)"):
        metric(clip, clip[:2])
    with pytest.raises(ValueError, match=r"\[frames, height, width, 3\]"):
        metric(clip[..., :2], clip[..., :2])
    with pytest.raises(ValueError, match="uint8"):
        metric((clip * 255).byte(), (clip * 255).byte())


def test_ssim_refuses_frames_smaller_than_its_window():
    with pytest.raises(ValueError, match="11 or more"):
        ssim(_clip(side=10), _clip(side=10))
