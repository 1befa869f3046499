"""Which videos a folder has, in every layout that folders come in."""

import json
from pathlib import Path

import pytest

from tapvideo.batch.items import Item, index_text
from tapvideo.checks import ConfigError
from tapvideo.vbench.clips import check_pairs, read_baseline, read_clips


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def keys(folder: Path) -> list[tuple[str, int]]:
    return [clip.key for clip in read_clips(str(folder))]


def batch(root: Path) -> Path:
    items = [Item("a%2Fb-0.mp4", "a/b", 7, 0), Item("a%2Fb-1.mp4", "a/b", 8, 1), Item("c~0f-0.mp4", "C", 7, 0)]
    touch(*(root / "videos" / item.file for item in items))
    (root / "videos.jsonl").write_text(index_text(items))
    return root


def run(root: Path, *, compared: bool) -> Path:
    clips = []
    for seed in (0, 3):
        name = f"000-a-cat-seed{seed}"
        touch(root / name / "video.mp4", *([root / name / "baseline.mp4"] if compared else []))
        comparison = {"baseline": f"{name}/baseline.mp4"} if compared else None
        clips.append({"prompt": "a cat", "seed": seed, "video": f"{name}/video.mp4", "comparison": comparison})
    (root / "run.json").write_text(json.dumps({"clips": clips}))
    return root


def test_vbench_names(tmp_path):
    touch(*(tmp_path / name for name in ("a cat-0.mp4", "a cat-1.mp4", "up-2-date-0.mp4", "alone.mp4", ".tmp-9.mp4")))
    touch(tmp_path / "a%2Fb-0.mp4")
    assert keys(tmp_path) == [("a cat", 0), ("a cat", 1), ("a/b", 0), ("alone", 0), ("up-2-date", 0)]


def test_a_batch_by_its_index_from_either_folder(tmp_path):
    root = batch(tmp_path / "batch")
    assert keys(root) == keys(root / "videos") == [("C", 7), ("a/b", 7), ("a/b", 8)]
    assert read_clips(str(root))[1].path == root / "videos" / "a%2Fb-0.mp4"


def test_a_batch_that_is_not_finished_is_refused(tmp_path):
    root = batch(tmp_path)
    (root / "videos" / "c~0f-0.mp4").unlink()
    with pytest.raises(ConfigError, match=r"lacks 1 of the 3 videos .* \(c~0f-0.mp4\)"):
        read_clips(str(root))


def test_a_run_and_what_it_was_compared_with(tmp_path):
    root = run(tmp_path / "run", compared=True)
    assert keys(root) == [("a cat", 0), ("a cat", 3)]
    theirs = read_baseline(str(root), "run")
    assert [clip.key for clip in theirs] == keys(root)
    assert {clip.path.name for clip in theirs} == {"baseline.mp4"}


def test_a_run_that_was_compared_with_nothing(tmp_path):
    root = run(tmp_path, compared=False)
    assert len(keys(root)) == 2
    with pytest.raises(ConfigError, match="no run of tapvideo-generate compare=true"):
        read_baseline(str(root), "run")


@pytest.mark.parametrize("folder", ["", "nowhere", "."])
def test_folders_without_videos(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"videos='.*' (is no folder|has no video); allowed: a folder"):
        read_clips(folder)


def test_records_of_something_else(tmp_path):
    (tmp_path / "run.json").write_text('{"clips": [{"prompt": "a"}]}')
    with pytest.raises(ConfigError, match="not the record of a run"):
        read_clips(str(tmp_path))


def test_one_prompt_and_seed_twice(tmp_path):
    touch(tmp_path / "a-0.mp4", tmp_path / "a-00.mp4")
    with pytest.raises(ConfigError, match="two clips of one prompt and seed"):
        read_clips(str(tmp_path))


def test_pairs_that_lack_partners(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    touch(ours / "a-0.mp4", ours / "b-0.mp4", theirs / "a-0.mp4", theirs / "c-5.mp4")
    with pytest.raises(ConfigError, match=r"videos lacks 1 clips \('c' 5\) and baseline lacks 1 clips \('b' 0\)"):
        check_pairs(read_clips(str(ours)), read_clips(str(theirs)))
    check_pairs(read_clips(str(ours)), read_clips(str(ours)))
