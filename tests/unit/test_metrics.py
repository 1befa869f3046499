"""Fidelity metrics against their formulas."""

import inspect
import math

import pytest
import torch
from torch.nn.functional import avg_pool2d, conv2d
from torchmetrics.functional.image import structural_similarity_index_measure

from tapvideo.metrics import (
    flicker_difference,
    frame_psnr,
    ms_ssim,
    ms_ssim_scales,
    psnr,
    relative_l2,
    ssim,
    worst_frame_psnr,
)


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


def test_frame_psnr_is_the_psnr_of_each_frame_alone():
    clip = _clip(frames=3).double()
    other = clip.clone()
    other[1] += 0.1
    other[2] -= 0.01
    assert frame_psnr(other, clip) == pytest.approx([math.inf, 20, 40])
    assert worst_frame_psnr(other, clip) == pytest.approx(20)
    assert worst_frame_psnr(clip, clip) == math.inf


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


def _noisy(height: int, width: int, frames: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    clip = torch.rand(frames, height, width, 3, generator=rng)
    return (clip + 0.1 * torch.randn(clip.shape, generator=rng)).clamp(0, 1), clip


@pytest.mark.parametrize("size", [(24, 24), (31, 53)])
def test_ssim_is_that_of_torchmetrics_away_from_the_borders(size):
    video, clip = _noisy(*size)
    planes = (frames.double().permute(0, 3, 1, 2) for frames in (video, clip))
    _, places = structural_similarity_index_measure(*planes, data_range=1.0, return_full_image=True)
    assert ssim(video, clip) == pytest.approx(places[:, :, 5:-5, 5:-5].mean().item(), abs=1e-9)


@pytest.mark.parametrize("size", [(24, 30), (64, 64), (90, 101), (176, 180)])
def test_ms_ssim_is_that_of_a_plain_two_dimensional_window(size):
    num_frames = 2 if size[0] < 90 else 1
    video, clip = _noisy(*size, frames=num_frames)
    line = torch.exp(-0.5 * (torch.arange(-5, 6).double() / 1.5) ** 2)
    window = (line[:, None] * line / line.sum() ** 2).expand(3, 1, 11, 11)
    published = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333]
    num_scales = {24: 2, 64: 3, 90: 4, 176: 5}[size[0]]
    norm = 1 if num_scales == 5 else sum(published[:num_scales])
    values = []
    for a, b in zip(*(frames.double().permute(0, 3, 1, 2)[:, None] for frames in (video, clip)), strict=True):
        value = 1.0
        for scale in range(num_scales):
            mu, nu = conv2d(a, window, groups=3), conv2d(b, window, groups=3)
            var, rav = conv2d((a**2), window, groups=3) - mu**2, conv2d(b**2, window, groups=3) - nu**2
            both = conv2d(a * b, window, groups=3) - mu * nu
            term = (2 * both + 9e-4) / (var + rav + 9e-4)
            if scale == num_scales - 1:
                term = term * (2 * mu * nu + 1e-4) / (mu**2 + nu**2 + 1e-4)
            value *= term.mean().item() ** (published[scale] / norm)
            a, b = avg_pool2d(a, 2), avg_pool2d(b, 2)
        values.append(value)
    assert ms_ssim(video, clip) == pytest.approx(sum(values) / num_frames, abs=1e-9)
    assert ms_ssim(clip, clip) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("side", "scales"), [(21, 1), (22, 2), (43, 2), (64, 3), (88, 4), (175, 4), (176, 5), (720, 5)]
)
def test_ms_ssim_uses_the_scales_on_which_its_window_fits(side, scales):
    assert ms_ssim_scales(side, 1000) == ms_ssim_scales(1000, side) == scales


def test_ms_ssim_of_opposite_structure_is_zero():
    _, clip = _noisy(24, 24)
    assert ms_ssim(1 - clip, clip) == 0  # where a power of a negative mean would be no number


def test_flicker_difference_counts_what_changes_from_frame_to_frame_only():
    clip = _clip(frames=5).double()
    assert flicker_difference(clip + 0.1, clip) == pytest.approx(0, abs=1e-12)
    blinking = clip + torch.tensor([0.03, -0.03, 0.03, -0.03, 0.03])[:, None, None, None]
    assert flicker_difference(blinking, clip) == pytest.approx(0.06)
    one = clip.clone()
    one[2] += 0.08  # there and back again: two of four differences
    assert flicker_difference(one, clip) == pytest.approx(0.04)


def test_flicker_difference_of_a_still_is_the_motion_that_it_misses():
    clip = _clip(frames=4).double()
    moves = (clip[1:] - clip[:-1]).abs().mean().item()
    assert flicker_difference(clip[:1].expand_as(clip), clip) == pytest.approx(moves)


def test_flicker_difference_needs_two_frames():
    with pytest.raises(ValueError, match="2 frames or more"):
        flicker_difference(_clip(frames=1), _clip(frames=1))


@pytest.mark.parametrize("shape", [(7,), (1, 16, 3, 8, 8)])
def test_relative_l2_of_a_scaled_tensor_is_the_scale(shape):
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert relative_l2(latents, latents) == 0
    assert relative_l2(1.25 * latents, latents) == pytest.approx(0.25)
    assert relative_l2(torch.zeros(shape), latents) == pytest.approx(1)


def test_relative_l2_takes_differences_before_it_rounds():
    ones = torch.ones(64, dtype=torch.bfloat16)
    assert relative_l2(ones, ones.float() + 2**-12) == pytest.approx(2**-12, rel=1e-3)


@pytest.mark.parametrize(
    ("latents", "reference", "message"),
    [
        (torch.ones(2), torch.ones(3), r"\(2,\) with latents of \(3,\)"),
        (torch.tensor([1.0, math.nan]), torch.ones(2), "NaN"),
        (torch.ones(2), torch.tensor([1.0, math.inf]), "infinite"),
        (torch.ones(2), torch.zeros(2), "zero throughout"),
    ],
)
def test_relative_l2_refuses_what_it_cannot_compare(latents, reference, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(relative_l2)(latents, reference)


@pytest.mark.parametrize("metric", [psnr, ssim, frame_psnr, worst_frame_psnr, ms_ssim, flicker_difference])
def test_metrics_refuse_what_they_cannot_compare(metric):
    metric = inspect.unwrap(metric)  # as users call it: the tests' checker of annotations would speak first
    clip = _clip()
    with pytest.raises(ValueError, match=r"\(3, 24, 24, 3\) with one of \(2, 24, 24, 3\)"):
        metric(clip, clip[:2])
    with pytest.raises(ValueError, match=r"\[frames, height, width, 3\]"):
        metric(clip[..., :2], clip[..., :2])
    with pytest.raises(ValueError, match="uint8"):
        metric((clip * 255).byte(), (clip * 255).byte())


@pytest.mark.parametrize(("metric", "side"), [(ssim, 11), (ms_ssim, 22)])
def test_similarity_refuses_frames_smaller_than_its_windows(metric, side):
    assert metric(_clip(side=side), _clip(side=side)) == pytest.approx(1)
    with pytest.raises(ValueError, match=f"allowed: {side} or more"):
        metric(_clip(side=side - 1), _clip(side=side - 1))
