"""Metrics that model a viewer (VMAF, FLIP, LPIPS), and all metrics at once."""

import inspect
import json
import math
import stat
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d

from tapvideo.metrics import (
    IDENTICAL,
    METRICS,
    Metric,
    MetricUnavailable,
    alexnet_lpips,
    evaluate,
    ffmpeg_vmaf,
    flip,
    lpips,
    vmaf,
)


def _clip(frames: int = 6, height: int = 64, width: int = 64) -> torch.Tensor:
    """Waves that move, with values in [0.1, 0.9]."""
    ends = (torch.linspace(0, 1, n) for n in (frames, height, width))
    t, y, x = torch.meshgrid(*ends, indexing="ij")
    waves = [torch.sin(20 * x + 5 * t), torch.cos(15 * y - 3 * t), torch.sin(12 * (x + y))]
    return 0.5 + 0.4 * torch.stack(waves, dim=-1)


def _noise(clip: torch.Tensor, sigma: float) -> torch.Tensor:
    return (clip + sigma * torch.randn(clip.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)


def _blur(clip: torch.Tensor) -> torch.Tensor:
    return avg_pool2d(clip.permute(0, 3, 1, 2), 5, stride=1, padding=2, count_include_pad=False).permute(0, 2, 3, 1)


def test_vmaf_of_equal_clips_is_near_100_and_falls_with_noise():
    clip = _clip()
    scores = [vmaf(clip, clip)] + [vmaf(_noise(clip, sigma), clip) for sigma in (0.01, 0.03, 0.1, 0.3)]
    assert 97 <= scores[0] <= 100
    assert scores == sorted(scores, reverse=True)
    assert scores[0] - scores[-1] > 40


def test_vmaf_knows_which_clip_is_the_reference():
    sharp = torch.rand(4, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    assert vmaf(_blur(sharp), sharp) < 20 < 70 < vmaf(sharp, _blur(sharp))  # it asks what was lost


@pytest.mark.parametrize("size", [(64, 64), (63, 77)])
def test_vmaf_is_what_ffmpeg_makes_of_the_frames_in_8_bits(tmp_path: Path, size):
    clip = _clip(4, *size)
    other = _noise(clip, 0.05)
    for name, frames in (("video", other), ("reference", clip)):
        (tmp_path / name).write_bytes((frames * 255).round().to(torch.uint8).numpy().tobytes())
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{size[1]}x{size[0]}"]
    convert = "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd,format=yuv444p"
    graph = f"[0:v]{convert}[a];[1:v]{convert}[b];[a][b]libvmaf=log_fmt=json:log_path=log"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *raw, "-i", "video", *raw, "-i", "reference"]
    subprocess.run([*command, "-lavfi", graph, "-f", "null", "-"], cwd=tmp_path, check=True)
    log = json.loads((tmp_path / "log").read_text())
    scores = [frame["metrics"]["vmaf"] for frame in log["frames"]]
    assert vmaf(other, clip) == pytest.approx(sum(scores) / len(scores), abs=0.3)


def test_vmaf_gets_the_luma_of_bt709_in_its_10_bits(tmp_path: Path):
    colours = torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1], [2, -1, -1]])
    ffmpeg_vmaf._write_luma(tmp_path / "raw", colours[None, None].expand(2, 3, 6, 3))
    frames = np.fromfile(tmp_path / "raw", "<u2").reshape(2, -1)
    assert (frames[:, :18].reshape(2, 3, 6) == [64, 940, 250, 691, 127, 250]).all()  # 64 + 876 * weight, clipped
    assert (frames[:, 18:] == 512).all()
    assert frames.shape[1] == 18 + 2 * 2 * 3


def test_vmaf_does_not_see_colour():
    clip = _clip()
    tinted = clip + 0.05 * torch.tensor([1.0, -0.2126 / 0.7152, 0.0])  # luma is as it was
    assert vmaf(tinted, clip) == pytest.approx(vmaf(clip, clip), abs=0.01)


def test_vmaf_says_that_this_ffmpeg_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake = tmp_path / "ffmpeg"
    fake.write_text("#!/bin/sh\necho \"[AVFilterGraph @ 0x1] No such filter: 'libvmaf'\" >&2\nexit 8\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(fake))
    with pytest.raises(MetricUnavailable, match=r"without libvmaf.*IMAGEIO_FFMPEG_EXE"):
        vmaf(_clip(2), _clip(2))
    fake.write_text("#!/bin/sh\necho 'out of luck' >&2\nexit 8\n")
    with pytest.raises(RuntimeError, match="code 8: out of luck"):
        vmaf(_clip(2), _clip(2))


def test_vmaf_needs_frames_that_libvmaf_takes():
    assert vmaf(_clip(2, 17, 17), _clip(2, 17, 17)) > 95
    with pytest.raises(ValueError, match="17 or more"):
        vmaf(_clip(2, 16, 64), _clip(2, 16, 64))


def _flip_of_flat_colours(a: list[float], b: list[float]) -> float:
    """FLIP of two flat images, from the paper: no detail for its filters, so colour alone decides."""
    to_xyz = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750]])
    to_xyz = np.vstack([to_xyz, [0.0193339, 0.1191920, 0.9503041]])

    def hunt(colour):
        colour = np.array(colour)
        linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
        ratio = (to_xyz @ linear) / (to_xyz @ np.ones(3))
        delta = 6 / 29
        x, y, z = np.where(ratio > delta**3, np.cbrt(ratio), ratio / (3 * delta**2) + 4 / 29)
        light = 116 * y - 16
        return np.array([light, 0.01 * light * 500 * (x - y), 0.01 * light * 200 * (y - z)])

    def distance(p, q):
        d = hunt(p) - hunt(q)
        return (abs(d[0]) + math.hypot(d[1], d[2])) ** 0.7

    largest, knee, share = distance([0, 1, 0], [0, 0, 1]), 0.4, 0.95
    d = distance(a, b)
    if d < knee * largest:
        return share * d / (knee * largest)
    return share + (1 - share) * (d - knee * largest) / (largest - knee * largest)


@pytest.mark.parametrize(
    ("a", "b"),
    [([0, 0, 0], [1, 1, 1]), ([0.5, 0.5, 0.5], [0.6, 0.5, 0.4]), ([0, 1, 0], [0, 0, 1]), ([0.2] * 3, [0.3] * 3)],
)
def test_flip_of_flat_colours_is_the_papers_formula(a, b):
    pytest.importorskip("flip_evaluator")
    flat = torch.ones(2, 16, 16, 3)
    assert flip(flat * torch.tensor(a), flat * torch.tensor(b)) == pytest.approx(_flip_of_flat_colours(a, b), abs=1e-4)


def test_flip_is_the_mean_of_its_package_over_frames():
    evaluator = pytest.importorskip("flip_evaluator")
    clip = _clip(3)
    other = _noise(clip, 0.1)
    maps = [
        evaluator.evaluate(b.numpy(), a.numpy(), "LDR", applyMagma=False)[0] for a, b in zip(other, clip, strict=True)
    ]
    assert flip(other, clip) == pytest.approx(np.mean(maps), abs=1e-5)
    assert flip(clip, clip) == 0


def test_flip_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "flip_evaluator", None)
    with pytest.raises(MetricUnavailable, match=r"pip install 'tapvideo\[metrics\]'"):
        flip(_clip(2), _clip(2))


@pytest.fixture(scope="module")
def trunk() -> dict[str, torch.Tensor]:
    """An AlexNet whose weights can be written down."""
    state = {}
    shapes = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    for index, (outputs, inputs, side) in shapes.items():
        size = outputs * inputs * side * side
        weight = torch.sin(12.9898 * torch.arange(size).double() + index) * math.sqrt(6 / (inputs * side * side))
        state[f"features.{index}.weight"] = weight.reshape(outputs, inputs, side, side).float()
        state[f"features.{index}.bias"] = (0.1 * torch.cos(torch.arange(outputs).double() + index)).float()
    return state


def test_lpips_is_that_of_its_authors_package(trunk):
    _, y, x = torch.meshgrid(torch.zeros(1), torch.linspace(0, 1, 70), torch.linspace(0, 1, 66), indexing="ij")
    clip = torch.stack([x, y, (x + y) / 2], dim=-1)
    other = (clip + 0.2 * torch.sin(40 * x * y)[..., None]).clamp(0, 1)
    found = alexnet_lpips.frame_distance(other[0], clip[0], trunk, alexnet_lpips.load_heads())
    # lpips 0.1.4, LPIPS(net="alex") with these weights in its trunk, and torchmetrics 1.9 alike
    assert found == pytest.approx(0.10822924, abs=2e-6)
    assert alexnet_lpips.frame_distance(clip[0], clip[0], trunk, alexnet_lpips.load_heads()) == 0


def test_lpips_says_where_its_weights_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    with pytest.raises(MetricUnavailable, match=rf"put https://download\.pytorch\.org/models/\S+ at {place}"):
        lpips(_clip(2), _clip(2))


def test_lpips_opens_no_other_weights(trunk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    place.parent.mkdir(parents=True)
    torch.save(trunk, place)
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("opened a pickle of unknown origin"))
    with pytest.raises(MetricUnavailable, match=r"SHA-256 begins with [0-9a-f]{8}, not 7be5be79"):
        lpips(_clip(2), _clip(2))


def test_lpips_reads_the_file_that_torchvision_publishes(trunk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As far as a file of the right digest can be had here: whatever is in it is taken for plain tensors."""
    place = tmp_path / "weights.pth"
    torch.save({**trunk, "classifier.1.weight": torch.zeros(2)}, place)

    class Digest:
        def hexdigest(self) -> str:
            return "7be5be79" + 56 * "0"

    monkeypatch.setattr(alexnet_lpips.hashlib, "sha256", lambda raw: Digest())
    loaded = inspect.unwrap(alexnet_lpips.load_trunk)(place)
    assert loaded.keys() == trunk.keys()
    torch.save({"features.0.weight": Path("any other class")}, place)
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        inspect.unwrap(alexnet_lpips.load_trunk)(place)


def test_evaluate_has_every_metric_or_the_reason_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    clip = _clip()
    values, not_computed = evaluate(_noise(clip, 0.05), clip)
    assert list(values) == list(METRICS)
    assert {name for name, value in values.items() if value is None} == set(not_computed)
    assert "lpips" in not_computed
    assert set(not_computed) <= {"lpips", "flip"}
    assert values["psnr_min"] <= values["psnr"]
    json.dumps(values, allow_nan=False)


def test_evaluate_says_that_identical_clips_have_no_finite_psnr():
    values, not_computed = evaluate(_clip(), _clip(), ["ssim", "psnr", "psnr_min", "flicker"])
    assert values == {"ssim": pytest.approx(1), "psnr": None, "psnr_min": None, "flicker": 0}
    assert not_computed == {"psnr": IDENTICAL, "psnr_min": IDENTICAL}


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyError("vmaf"), OSError("disk full")])
def test_evaluate_goes_on_when_a_metric_fails(monkeypatch: pytest.MonkeyPatch, error: Exception):
    def fail(video, reference):
        raise error

    monkeypatch.setitem(METRICS, "ssim", Metric("ssim", "SSIM", "", True, fail))
    monkeypatch.setitem(METRICS, "flicker", Metric("flicker", "Flicker", "", False, lambda video, reference: math.nan))
    clip = _clip()
    values, not_computed = evaluate(_noise(clip, 0.1), clip, ["ssim", "flicker", "psnr"])
    assert values == {"ssim": None, "flicker": None, "psnr": pytest.approx(20, abs=1)}
    assert not_computed == {"ssim": f"{type(error).__name__}: {error}", "flicker": "the result is nan"}


def test_evaluate_does_not_swallow_ctrl_c(monkeypatch: pytest.MonkeyPatch):
    def interrupt(video, reference):
        raise KeyboardInterrupt

    monkeypatch.setitem(METRICS, "ssim", Metric("ssim", "SSIM", "", True, interrupt))
    with pytest.raises(KeyboardInterrupt):
        evaluate(_clip(), _clip(), ["ssim"])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_evaluate_names_the_clip_that_is_not_finite(value: float):
    broken = _clip()
    broken[1, 2, 3, 0] = value
    values, not_computed = evaluate(broken, _clip(), ["psnr", "ssim"])
    assert values == {"psnr": None, "ssim": None}
    assert set(not_computed.values()) == {"the clip has NaN or infinite values"}
    assert set(evaluate(_clip(), broken, ["psnr"])[1].values()) == {"the reference has NaN or infinite values"}


def test_evaluate_refuses_unknown_names_and_clips_of_two_shapes():
    with pytest.raises(ValueError, match=r"\['fid'\]; allowed: \['psnr'"):
        evaluate(_clip(), _clip(), ["psnr", "fid"])
    with pytest.raises(ValueError, match="cannot compare"):
        inspect.unwrap(evaluate)(_clip(3), _clip(2), ["psnr"])


def test_metrics_tell_how_they_are_read():
    assert [name for name, metric in METRICS.items() if not metric.higher_is_better] == ["flip", "lpips", "flicker"]
    assert METRICS["ms_ssim"].title(64, 64) == "MS-SSIM (3 of 5 scales)"
    assert METRICS["ms_ssim"].title(480, 832) == "MS-SSIM"
    assert METRICS["psnr"].title(64, 64) == "PSNR"
    assert METRICS["psnr"].unit == "dB"
