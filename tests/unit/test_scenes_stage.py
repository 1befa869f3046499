"""Clips of the drawn world, judged from files: what was drawn is right, what was swapped is wrong."""

import random
from pathlib import Path

import pytest
import torch

from tapvideo.checks import ConfigError
from tapvideo.tiny import scenes
from tapvideo.tiny.score import score_clip, score_folder
from tapvideo.vbench.config import ScenesConfig
from tapvideo.vbench.scenes import run_scenes
from tapvideo.video_io import write_mp4
from tapvideo.video_read import read_video


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Six drawn clips under their captions, and a baseline whose clips are those of other captions."""
    root, rng = tmp_path_factory.mktemp("drawn"), random.Random(1)
    chosen = [scenes.sample_scene(rng) for _ in range(6)]
    clips = [scenes.render([s], torch.Generator().manual_seed(i))[0].permute(1, 2, 3, 0) for i, s in enumerate(chosen)]
    for i, scene in enumerate(chosen):
        for folder, clip in (("right", clips[i]), ("wrong", clips[i - 1])):
            write_mp4(root / folder / f"{scenes.caption(scene)}-0.mp4", (clip + 1) / 2, fps=8, crf=10)
    return root / "right", root / "wrong"


def config(videos: Path, out: Path, **changes) -> ScenesConfig:
    return ScenesConfig(videos=str(videos), output_dir=str(out), verbose=False, **changes)


def test_means_are_the_shares_that_the_scorer_gives(drawn, tmp_path):
    results = run_scenes(config(drawn[0], tmp_path))
    found = [(read_video(path).movedim(-1, 1), path.stem.removesuffix("-0")) for path in drawn[0].iterdir()]
    total = score_folder([score_clip(clip, caption) for clip, caption in found])
    means = {row.name: row.mean for row in results.rows}
    assert means == pytest.approx(
        {name: getattr(total, name) for name in ("background", "objects", "directions", "motions")}
    )
    assert means["background"] == 1
    assert results.problems == []


def test_clips_under_wrong_captions_score_worse(drawn, tmp_path):
    results = run_scenes(config(drawn[1], tmp_path, baseline=str(drawn[0])))
    changes = {row.name: row.change for row in results.rows}
    assert changes["background"] < -0.5
    assert changes["objects"] < -0.3
    (folder,) = tmp_path.glob("scenes-wrong-*")
    assert {path.name for path in folder.iterdir()} == {"results.json", "results.csv", "report.html"}


def test_other_prompts_are_refused(tmp_path):
    write_mp4(tmp_path / "a cat-0.mp4", torch.zeros(2, 16, 16, 3), fps=8, crf=20)
    with pytest.raises(
        ConfigError, match=r"1 of 1 prompts are no captions of the drawn world \(a cat-0.mp4: 'a cat'\)"
    ):
        run_scenes(config(tmp_path, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_damaged_clip_is_named_and_the_rest_is_judged(drawn, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for path in drawn[0].iterdir():
        (videos / path.name).write_bytes(path.read_bytes())
    first = sorted(videos.iterdir())[0]
    first.write_bytes(first.read_bytes()[:-200])
    results = run_scenes(config(videos, tmp_path / "out"))
    assert {clip.file for clip, _, _ in results.problems} == {first.name}
    background = next(row for row in results.rows if row.name == "background")
    assert (background.count, background.expected) == (5, 6)
