"""Videos of any make: whole ones are read to the last frame, others are told apart and named."""

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch

from tapvideo.metrics import psnr
from tapvideo.video_io import read_mp4, write_mp4
from tapvideo.video_read import VideoError, VideoFacts, probe_video, read_video

SOURCE = ["-f", "lavfi", "-i", "testsrc2=size=64x48:rate=8:duration=2"]


def _ffmpeg(*arguments: str | Path) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def _waves(frames: int = 17) -> torch.Tensor:
    ends = (torch.linspace(0, 1, n) for n in (frames, 48, 64))
    t, y, x = torch.meshgrid(*ends, indexing="ij")
    return torch.stack([x, (y + t) / 2, (1 - x) * (1 - t / 2)], dim=-1)


@pytest.fixture(scope="module")
def mp4(tmp_path_factory) -> Path:
    """17 frames of 64x48 at 8/s, whose index comes first."""
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    write_mp4(path, _waves(), fps=8, crf=10)
    return path


def test_probe_says_what_the_header_says(mp4: Path):
    assert probe_video(mp4) == VideoFacts("h264", "yuv420p", 64, 48, 8.0, 2.13, has_sound=False)


def test_read_video_reads_what_read_mp4_reads(mp4: Path):
    frames = read_video(mp4, num_frames=17, size=(48, 64), fps=8)
    assert torch.equal(frames, read_mp4(mp4))
    assert psnr(frames, _waves()) > 45


def test_decord_reads_the_same_frames_more_coarsely(mp4: Path):
    pytest.importorskip("decord")
    frames = read_video(mp4, num_frames=17, size=(48, 64), fps=8, decoder="decord")
    quality = [psnr(frame[None], other[None]) for frame, other in zip(frames, _waves(), strict=True)]
    assert min(quality) > 38
    assert psnr(read_video(mp4), _waves()) > psnr(frames, _waves()) + 3  # why it is not the default


def test_decord_is_named_where_it_is_missing(mp4: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "decord", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'tapvideo\[video\]'"):
        read_video(mp4, decoder="decord")


@pytest.mark.parametrize(
    ("name", "options", "lossless"),
    [
        ("a.mkv", ["-c:v", "ffv1", "-pix_fmt", "bgr0"], True),
        ("a.avi", ["-c:v", "rawvideo", "-pix_fmt", "bgr24"], True),
        ("a.mkv", ["-c:v", "ffv1", "-pix_fmt", "yuv420p"], False),
        ("a.mp4", ["-c:v", "libx264rgb", "-crf", "0"], False),  # it is, but nothing in the header says so
        ("a.webm", ["-c:v", "libvpx-vp9", "-pix_fmt", "yuv420p", "-cpu-used", "8"], False),
        ("a.mov", ["-c:v", "mpeg4"], False),
        ("a.gif", [], False),
        ("with 'quotes' and spaces; $HOME.mp4", ["-c:v", "libx264", "-pix_fmt", "yuv420p"], False),
    ],
)
def test_videos_of_every_make_are_read_to_the_last_frame(tmp_path: Path, name, options, lossless):
    path = tmp_path / name
    _ffmpeg(*SOURCE, *options, path)
    assert read_video(path, num_frames=16, size=(48, 64)).shape == (16, 48, 64, 3)
    assert probe_video(path).is_lossless == lossless


def test_lossless_frames_come_back_bit_for_bit(tmp_path: Path):
    frames = torch.randint(256, (5, 18, 30, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (tmp_path / "raw").write_bytes(frames.numpy().tobytes())
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "30x18", "-r", "8", "-i", tmp_path / "raw"]
    _ffmpeg(*raw, "-c:v", "ffv1", "-pix_fmt", "bgr0", tmp_path / "clip.mkv")
    assert torch.equal(read_video(tmp_path / "clip.mkv"), frames.float() / 255)


def test_odd_rates_and_longer_sound_are_no_faults(tmp_path: Path):
    _ffmpeg("-f", "lavfi", "-i", "testsrc2=size=64x48:rate=24000/1001:duration=2", tmp_path / "film.mp4")
    assert len(read_video(tmp_path / "film.mp4", num_frames=48, fps=24000 / 1001)) == 48
    _ffmpeg(*SOURCE, "-f", "lavfi", "-i", "sine=duration=5", tmp_path / "sound.mp4")
    assert len(read_video(tmp_path / "sound.mp4", num_frames=16, fps=8)) == 16


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"num_frames": 16}, "expected 16 frames, found 17$"),
        ({"num_frames": 18}, "expected 18 frames, found 17$"),
        ({"size": (64, 48)}, "expected frames of 48x64 pixels, found 64x48$"),
        ({"fps": 7.9}, r"expected 7\.9 frames per second, found 8$"),
    ],
)
def test_wrong_count_size_and_rate_are_told(mp4: Path, asked, message):
    with pytest.raises(VideoError, match=message) as caught:
        read_video(mp4, **asked)
    assert caught.value.path == mp4
    assert isinstance(caught.value, ValueError)
    assert str(caught.value) == f"{mp4}: expected {caught.value.expected}, found {caught.value.found}"


@pytest.mark.parametrize("decoder", ["ffmpeg", "decord"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.99])
def test_truncated_videos_are_told(tmp_path: Path, mp4: Path, share: float, decoder):
    if decoder == "decord":
        pytest.importorskip("decord")
    raw = mp4.read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(VideoError, match=r"cut\.mp4: expected a (whole )?video, found"):
        read_video(cut, decoder=decoder)


def test_truncated_matroska_is_told_though_ffmpeg_ends_well(tmp_path: Path):
    _ffmpeg(*SOURCE, "-c:v", "ffv1", "-pix_fmt", "bgr0", tmp_path / "whole.mkv")
    raw = (tmp_path / "whole.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(raw[: len(raw) * 2 // 3])
    with pytest.raises(VideoError, match="ended prematurely"):
        read_video(tmp_path / "cut.mkv")


def test_frames_that_the_header_promises_are_missed(tmp_path: Path):
    _ffmpeg(*SOURCE, "-c:v", "mpeg4", "-frames:v", "9", tmp_path / "nine.avi")
    raw = (tmp_path / "nine.avi").read_bytes()
    place = raw.index(b"avih") + 8 + 16  # dwTotalFrames of the main header
    stream = raw.index(b"strh") + 8 + 32  # dwLength of the stream's
    patched = bytearray(raw)
    for offset in (place, stream):
        patched[offset : offset + 4] = (16).to_bytes(4, "little")
    (tmp_path / "nine.avi").write_bytes(patched)
    with pytest.raises(VideoError, match=r"expected about 16 frames, by its header's 2 s at 8/s, found 9"):
        read_video(tmp_path / "nine.avi")


@pytest.mark.parametrize("seed", range(3))
def test_corrupted_videos_are_told(tmp_path: Path, mp4: Path, seed: int):
    raw = bytearray(mp4.read_bytes())
    start = raw.index(b"mdat") + 1000
    for place in np.random.default_rng(seed).integers(start, len(raw), size=20):
        raw[place] ^= 0xFF
    (tmp_path / "bad.mp4").write_bytes(raw)
    with pytest.raises(VideoError, match="expected a whole video, found damage that ffmpeg tells of as"):
        read_video(tmp_path / "bad.mp4")


@pytest.mark.parametrize("decoder", ["ffmpeg", "decord"])
def test_files_without_a_frame_are_told(tmp_path: Path, decoder):
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    _ffmpeg(*SOURCE, "-frames:v", "0", tmp_path / "none.mp4")
    _ffmpeg(*SOURCE, "-frames:v", "0", tmp_path / "none.mkv")
    _ffmpeg("-f", "lavfi", "-i", "sine=duration=1", tmp_path / "sound.mp4")
    found = {"text.mp4": "no video", "empty.mp4": "an empty file", "none.mp4": "no video", "none.mkv": "no video"}
    for name, reason in {
        **found,
        "sound.mp4": "no video",
        "folder.mp4": "no such file",
        "absent.mp4": "no such",
    }.items():
        with pytest.raises(VideoError, match=f"{name}: expected a video, found .*{reason}"):
            read_video(tmp_path / name, decoder=decoder)
