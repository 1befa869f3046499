"""The stage from folder to table, with an environment that only looks like VBench's."""

import csv
import json
import sys
from pathlib import Path

import pytest
import torch
from fake_vbench import write_packages

from tapvideo.checks import ConfigError
from tapvideo.sample import RunFailed
from tapvideo.vbench.clips import read_clips, with_digests
from tapvideo.vbench.config import VBenchConfig
from tapvideo.vbench.stage import run_vbench, weights_text
from tapvideo.vbench.store import ScoreStore
from tapvideo.vbench.weights import ALL_WEIGHTS
from tapvideo.video_io import write_mp4

FLICKER = "temporal_flickering"


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Make a configuration whose interpreter finds the packages that look like VBench's."""
    monkeypatch.setenv("PYTHONPATH", str(write_packages(tmp_path / "packages")))

    def config(videos: Path, **changes) -> VBenchConfig:
        values = {"dimensions": [FLICKER], "output_dir": str(tmp_path / "out"), "cache_dir": str(tmp_path / "cache")}
        return VBenchConfig(videos=str(videos), verbose=False, **values | changes)

    return config


def make(folder: Path, names: list[str], *, frames: int = 3, tone: float = 0.5) -> Path:
    for number, name in enumerate(names):
        clip = torch.full((frames, 16, 16, 3), tone) * torch.linspace(0.2, 1, 16 * 3).view(1, 1, 16, 3)
        write_mp4(folder / f"{name}.mp4", clip * (1 - number / 50), fps=8, crf=20)
    return folder


def fake_score(path: Path) -> float:
    return path.stat().st_size % 97 / 97


def lines(tmp_path: Path) -> list[dict]:
    texts = (path.read_text() for path in (tmp_path / "out" / "vbench-scores").glob(f"{FLICKER}-*.jsonl"))
    return [json.loads(line) for text in texts for line in text.splitlines()]


def test_folder_to_results(tmp_path, fake):
    videos = make(tmp_path / "videos", ["a cat-0", "a cat-1", "a dog-0"])
    results = run_vbench(fake(videos))
    scores = {path.stem: fake_score(path) for path in videos.iterdir()}
    assert {clip.file: clip.values[FLICKER] for clip in results.clips} == {f"{k}.mp4": [v] for k, v in scores.items()}
    (row,) = results.rows
    assert row.mean == pytest.approx(sum(scores.values()) / 3)
    assert (row.count, row.expected) == (3, 3)
    assert results.summary.normalised[FLICKER] == pytest.approx((row.mean - 0.6293) / (1 - 0.6293))
    assert (results.summary.total, len(results.summary.missing)) == (None, 15)
    (folder,) = (tmp_path / "out").glob("vbench-videos-*")
    assert json.loads((folder / "results.json").read_text())["rows"][0]["mean"] == row.mean
    table = list(csv.DictReader((folder / "results.csv").open()))
    assert {(line["file"], float(line["value"])) for line in table} == {(f"{k}.mp4", v) for k, v in scores.items()}
    assert "temporal_flickering" in (folder / "report.html").read_text()


def test_scores_are_kept_and_shared_between_folders(tmp_path, fake):
    videos = make(tmp_path / "videos", ["a cat-0", "a dog-0"])
    run_vbench(fake(videos))
    before = lines(tmp_path)
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for path in videos.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    run_vbench(fake(copy))
    assert lines(tmp_path) == before
    (copy / "a dog-0.mp4").unlink()
    make(copy, ["a dog-0"], tone=0.9)
    run_vbench(fake(copy))
    assert len(lines(tmp_path)) == 3


def test_what_cannot_be_scored_is_named_and_tried_again(tmp_path, fake):
    videos = make(tmp_path / "videos", ["a-0", "explodes-0", "skipped-0", "nan-0", "b-0"])
    (videos / "cut-0.mp4").write_bytes((videos / "a-0.mp4").read_bytes()[:-40])
    (videos / "empty-0.mp4").touch()
    results = run_vbench(fake(videos))
    why = {clip.file: reason for clip, _, reason in results.problems}
    assert set(why) == {"explodes-0.mp4", "skipped-0.mp4", "nan-0.mp4", "cut-0.mp4", "empty-0.mp4"}
    assert why["explodes-0.mp4"] == "ValueError: boom"
    assert "could not read" in why["skipped-0.mp4"]
    assert "nan" in why["nan-0.mp4"]
    assert "cut-0.mp4: expected a" in why["cut-0.mp4"]
    assert results.rows[0].count == 2
    assert results.rows[0].expected == 7
    assert FLICKER in results.summary.missing  # a mean over some of the videos is no score of the folder
    before = len(lines(tmp_path))
    run_vbench(fake(videos))
    assert len(lines(tmp_path)) == before + 3  # those that VBench refused; damaged ones are not shown to it


def test_a_process_that_dies_leaves_what_was_scored(tmp_path, fake):
    videos = make(tmp_path / "videos", ["a-0", "b-0", "dies-0"])
    with pytest.raises(RunFailed, match=r"temporal_flickering: VBench ended with code 9 .*\.log"):
        run_vbench(fake(videos, batch=1))
    assert len(lines(tmp_path)) == 2


def test_shards_score_and_collect_gathers(tmp_path, fake):
    videos = make(tmp_path / "videos", ["a-0", "b-0", "c-0"])
    assert run_vbench(fake(videos, shard=1, shards=2)) is None
    assert len(lines(tmp_path)) == 1
    partial = run_vbench(fake(videos, collect=True))
    assert [clip.file for clip, _, _ in partial.problems] == ["a-0.mp4", "c-0.mp4"]
    run_vbench(fake(videos, shard=0, shards=2))
    whole = run_vbench(fake(videos, collect=True, dimensions=[]))
    assert whole.problems == []
    assert whole.rows == run_vbench(fake(videos)).rows
    assert len(lines(tmp_path)) == 3


def test_other_dimensions_are_shown_once_they_are_whole(tmp_path, fake):
    videos = make(tmp_path / "videos", ["a-0", "b-0"])
    clips = with_digests(read_clips(str(videos)))
    store = ScoreStore(tmp_path / "out" / "vbench-scores")

    def add(clip, score: float) -> None:
        line = {"vbench": "0.1.5", "dimension": "imaging_quality", "sha256": clip.sha256, "prompt": clip.prompt}
        with store.file("imaging_quality", "other").open("a") as out:
            out.write(json.dumps(line | {"score": score, "error": None}) + "\n")

    add(clips[0], 0.2)
    partial = run_vbench(fake(videos))
    assert ([row.name for row in partial.rows], partial.problems) == ([FLICKER], [])
    gathered = run_vbench(fake(videos, collect=True, dimensions=[]))
    assert [(clip.file, name) for clip, name, _ in gathered.problems] == [("b-0.mp4", "imaging_quality")]
    assert "imaging_quality" in gathered.summary.missing
    add(clips[1], 0.4)
    whole = run_vbench(fake(videos))
    assert {row.name: row.mean for row in whole.rows}["imaging_quality"] == pytest.approx(0.3)


def test_two_folders_are_compared_clip_by_clip(tmp_path, fake):
    names = ["a-0", "a-1", "b-0"]
    ours, theirs = make(tmp_path / "ours", names, tone=0.9), make(tmp_path / "theirs", names)
    results = run_vbench(fake(ours, baseline=str(theirs)))
    changes = [fake_score(ours / f"{name}.mp4") - fake_score(theirs / f"{name}.mp4") for name in names]
    (row,) = results.rows
    assert row.change == pytest.approx(sum(changes) / 3)
    assert row.mean - row.baseline == pytest.approx(row.change)
    assert row.pairs == 3
    assert row.change_low <= row.change <= row.change_high


def test_clips_of_other_sizes_are_not_compared(tmp_path, fake):
    ours, theirs = make(tmp_path / "ours", ["a-0"], frames=4), make(tmp_path / "theirs", ["a-0"])
    with pytest.raises(ConfigError, match=r"4 frames of 16x16, .* 3 frames of 16x16"):
        run_vbench(fake(ours, baseline=str(theirs)))


def test_standard_protocol_scores_what_vbench_means(tmp_path, fake):
    videos = make(tmp_path / "videos", ["a beach-0", "a red car-0"])
    results = run_vbench(fake(videos))
    assert results.settings["protocol"] == "standard"
    assert {clip.file: FLICKER in clip.values for clip in results.clips} == {
        "a beach-0.mp4": True,
        "a red car-0.mp4": False,
    }
    assert any("lack" in note and f"{FLICKER} 1" in note for note in results.notes)
    custom = run_vbench(fake(videos, protocol="custom"))
    assert custom.rows[0].count == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"python": "/nowhere/python"}, "cannot be started .* docs/vbench.md"),
        ({"dimensions": ["dynamic_degree"]}, r"lacks raft_model/models/raft-things.pth \(MISSING\); weights=list"),
        ({"dimensions": ["color"]}, r"\['color'\] cannot be judged for prompts of your own, e.g. 'a cat'"),
        ({"protocol": "standard"}, r"1 prompts are not VBench's \('a cat'\)"),
        ({"device": "cuda"}, "sees no GPU; allowed: auto, cpu"),
    ],
)
def test_refusals_name_key_and_way_out(tmp_path, fake, changes, message):
    videos = make(tmp_path / "videos", ["a cat-0"])
    with pytest.raises(ConfigError, match=message):
        run_vbench(fake(videos, **changes))
    assert not (tmp_path / "out").exists()


def test_a_dimension_that_cannot_be_imported(tmp_path, fake):
    videos = make(tmp_path / "videos", ["a cat-0"])
    weights = tmp_path / "cache" / "raft_model" / "models" / "raft-things.pth"
    weights.parent.mkdir(parents=True)
    with weights.open("wb") as file:
        file.truncate(21_000_000)
    with pytest.raises(ConfigError, match=r"No module named 'not_there'; allowed without: dimensions=\[temporal"):
        run_vbench(fake(videos, dimensions=["dynamic_degree", FLICKER]))


def test_an_interpreter_without_vbench(tmp_path, fake, monkeypatch):
    videos = make(tmp_path / "videos", ["a cat-0"])
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"python=None: {sys.executable} has no VBench that works"):
        run_vbench(fake(videos))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dimensions": ["flicker"]}, "dimensions='flicker' is not known"),
        ({"dimensions": [FLICKER, FLICKER]}, "repeats one"),
        ({"shard": 2, "shards": 2}, "shard=2 is not one of the shards; allowed: 0 to 1"),
        ({"collect": True, "shards": 2}, "collect=true is for all videos"),
        ({"batch": 0}, "batch=0 is too small"),
        ({"weights": "fetch"}, "weights='fetch' is not known; allowed: list, check, script"),
    ],
)
def test_config_is_checked(changes, message):
    with pytest.raises(ConfigError, match=message):
        VBenchConfig(videos="x", **changes)


def test_store_skips_torn_lines_and_prefers_scores(tmp_path):
    store = ScoreStore(tmp_path)
    line = {
        "vbench": "0.1.5",
        "dimension": FLICKER,
        "sha256": "s",
        "prompt": "p",
        "score": None,
        "error": "out of memory",
    }
    texts = [json.dumps(line), json.dumps(line | {"score": 0.5, "error": None}), json.dumps(line), '{"vbench": "0.1']
    store.file(FLICKER, "job").write_text("\n".join(texts))
    assert store.scores("0.1.5", FLICKER)["s", "p"].score == 0.5
    assert store.scores("0.1.6", FLICKER) == {}


def test_weights_are_listed_checked_and_scripted(tmp_path):
    def text(kind: str, dimension: str) -> tuple[str, bool]:
        return weights_text(VBenchConfig(weights=kind, dimensions=[dimension], cache_dir=str(tmp_path)))

    place = tmp_path / "pyiqa_model" / "musiq_spaq_ckpt-358bb6af.pth"
    assert "MISSING; for imaging_quality" in text("list", "imaging_quality")[0]
    assert f"cd {tmp_path}" in text("script", "imaging_quality")[0]
    assert "curl -fL -C - -o pyiqa_model/" in text("script", "imaging_quality")[0]
    place.parent.mkdir()
    place.touch()
    assert "EMPTY" in text("check", "imaging_quality")[0]
    place.write_bytes(b"x" * 1000)
    assert "TOO SMALL" in text("check", "imaging_quality")[0]
    with place.open("wb") as file:
        file.truncate(109_000_000)
    listed, complete = text("list", "imaging_quality")
    assert (complete, "there, 109 MB" in listed) == (True, True)
    checked, complete = text("check", "imaging_quality")
    assert (complete, "WRONG SHA-256" in checked) == (False, True)
    assert text("list", FLICKER) == ("0 of 0 are there; all of known size together are 0 MB", True)


def test_every_dimension_but_flicker_has_weights():
    from tapvideo.vbench.dimensions import DIMENSIONS

    assert set(DIMENSIONS) - {name for weights in ALL_WEIGHTS for name in weights.dimensions} == {FLICKER}
