"""`python -m tapvideo.cli.score`: a batch with bad videos in it is scored to its end."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tapvideo.cli.score import main
from tapvideo.metrics import METRICS
from tapvideo.video_io import write_mp4


def _write(path: Path, *, frames: int = 5, side: int = 32, fps: int = 8, offset: float = 0.0) -> Path:
    ends = (torch.linspace(0, 0.8, n) for n in (frames, side, side))
    clip = torch.stack(torch.meshgrid(*ends, indexing="ij"), dim=-1)
    write_mp4(path, clip + offset, fps=fps, crf=10)
    return path


def test_two_videos_are_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    video, reference = _write(tmp_path / "a.mp4", offset=0.1), _write(tmp_path / "b.mp4")
    assert main([str(video), str(reference)]) == 0
    shown = capsys.readouterr()
    lines = dict(line.strip().split("  ", 1) for line in shown.out.splitlines()[1:])
    assert float(lines["PSNR"].split()[0]) == pytest.approx(20, abs=0.5)
    assert set(lines) == {metric.title(32, 32) for metric in METRICS.values()}
    assert "h264 yuv420p is lossy" in shown.err


def test_identical_videos_and_missing_metrics_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    video = _write(tmp_path / "a.mp4")
    assert main([str(video), str(video), "--metrics", "psnr,ssim"]) == 0
    assert "infinite: identical" in capsys.readouterr().out
    assert main([str(video), str(video), "--metrics", "lpips"]) == 1
    assert "not computed: frames of (32, 32) pixels have no LPIPS" in capsys.readouterr().out


def test_a_batch_goes_on_past_bad_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    plain, brighter = _write(tmp_path / "plain.mp4"), _write(tmp_path / "brighter.mp4", offset=0.1)
    (ours / "good").mkdir(parents=True)
    (theirs / "good").mkdir(parents=True)
    for name in ("good/1.mp4", "good/2.mp4", "wrong size.mp4", "wrong rate.mp4", "long.mp4", "cut.mp4", "lonely.mp4"):
        shutil.copy(plain, theirs / name)
    for name in ("good/1.mp4", "good/2.mp4", "extra.mp4"):
        shutil.copy(brighter, ours / name)
    _write(ours / "wrong size.mp4", side=34)
    _write(ours / "wrong rate.mp4", fps=9)
    _write(ours / "long.mp4", frames=6)
    (ours / "cut.mp4").write_bytes(plain.read_bytes()[:-20])
    (ours / "notes.txt").write_text("not a video")

    assert main([str(ours), str(theirs), "--metrics=psnr", "--json"]) == 1
    shown = capsys.readouterr()
    scores = {Path(score["video"]).relative_to(ours).as_posix(): score for score in json.loads(shown.out)}
    assert {name for name, score in scores.items() if score["error"] is None} == {"good/1.mp4", "good/2.mp4"}
    assert scores["good/1.mp4"]["metrics"]["psnr"] == pytest.approx(20, abs=0.5)
    reasons = {name: score["error"] for name, score in scores.items() if score["error"]}
    assert list(reasons) == ["cut.mp4", "extra.mp4", "lonely.mp4", "long.mp4", "wrong rate.mp4", "wrong size.mp4"]
    assert "expected 5 frames, found 6" in reasons["long.mp4"]
    assert "expected frames of 32x32 pixels, found 34x34" in reasons["wrong size.mp4"]
    assert "expected 8 frames per second, found 9" in reasons["wrong rate.mp4"]
    assert "expected a whole video" in reasons["cut.mp4"]
    assert "lonely.mp4: expected a video, found no such file" in reasons["lonely.mp4"]
    assert str(theirs / "extra.mp4") in reasons["extra.mp4"]
    assert "6 of 8 pairs failed" in shown.err
    assert all(reason in shown.err for reason in reasons.values())


def test_a_folder_ends_with_means_and_intervals(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("1.mp4", "2.mp4"):
        _write(tmp_path / "ours" / name, offset=0.1)
        _write(tmp_path / "theirs" / name)
    assert main([str(tmp_path / "ours"), str(tmp_path / "theirs"), "--metrics=psnr"]) == 0
    assert "mean of 2 clips: PSNR 19.9" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        ("a.mp4", ["a.mp4", "."], "two files or two folders"),
        ("notes.txt", [".", "."], "have no videos"),
        ("a.mp4", ["a.mp4", "a.mp4", "--metrics=psnr,fid"], r"unknown ['fid']; allowed: psnr, "),
    ],
)
def test_usage_errors_are_one_line(tmp_path: Path, capsys, monkeypatch, make, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / make).touch()
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1
