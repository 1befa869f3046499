"""VBench's real temporal_flickering on clips that the embedded model made, accelerated and not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tapvideo.generate import run
from tapvideo.vbench import worker
from tapvideo.vbench.clips import read_baseline, read_clips
from tapvideo.vbench.config import VBenchConfig
from tapvideo.vbench.stage import run_vbench
from tapvideo.video_read import read_video

pytestmark = [pytest.mark.vbench, pytest.mark.slow]

FLICKER = "temporal_flickering"
# Through VBench's own front door: it lists the folder itself, and takes the mean over what it finds.
FRONT_DOOR = """
import sys
sys.path.insert(0, {package!r})
import worker
kept = worker.declare_missing_operators()
import torch
from vbench import VBench
bench = VBench(torch.device("cpu"), {suite!r}, {out!r})
bench.evaluate(videos_path={videos!r}, name="front", dimension_list=["temporal_flickering"], local=True,
               mode="custom_input")
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the embedded model with two prompts, few steps, and every clip without acceleration too."""
    from hydra import compose, initialize_config_dir

    from tapvideo.config import GenerateConfig, config_dir

    root = tmp_path_factory.mktemp("made")
    prompts = root / "prompts.txt"
    captions = [
        "a red circle moving left on a blue striped background",
        "a white star growing on a black plain background",
    ]
    prompts.write_text("\n".join(captions))
    overrides = [
        f"prompt_file={prompts}",
        f"output_dir={root}",
        "steps=14",
        "compare=true",
        "verbose=false",
        "device=cpu",
    ]
    with initialize_config_dir(str(config_dir().resolve()), version_base="1.3"):
        run(GenerateConfig.from_hydra(compose("generate", overrides)), command="")
    (folder,) = root.glob("wan_tiny-*")
    return folder


def stage(made: Path, out: Path, **changes) -> VBenchConfig:
    values = {"videos": str(made), "dimensions": [FLICKER], "output_dir": str(out), "verbose": False, "device": "cpu"}
    return VBenchConfig(**values | changes)


def own_flicker(path: Path) -> float:
    """The same figure from tapvideo's own decoder: OpenCV converts colours a little otherwise."""
    frames = read_video(path)
    return 1 - (frames[1:] - frames[:-1]).abs().mean().item()


def test_accelerated_and_plain_clips_are_scored(vbench_path, made, tmp_path):
    results = run_vbench(stage(made, tmp_path, baseline="run"))
    (row,) = results.rows
    assert (row.count, row.pairs, results.problems) == (2, 2, [])
    assert results.versions["vbench"] == "0.1.5"
    paths = {("videos", clip.key): clip.path for clip in read_clips(str(made))}
    paths |= {("baseline", clip.key): clip.path for clip in read_baseline(str(made), "run")}
    for clip in results.clips:
        (value,) = clip.values[FLICKER]
        assert value == pytest.approx(own_flicker(paths[clip.folder, (clip.prompt, clip.seed)]), abs=2e-3)
    assert row.change == pytest.approx(row.mean - row.baseline)
    scores = tmp_path / "vbench-scores"
    before = {path.name: path.read_bytes() for path in scores.glob("*.jsonl")}
    run_vbench(stage(made, tmp_path, baseline="run"))
    assert {path.name: path.read_bytes() for path in scores.glob("*.jsonl")} == before


def test_the_mean_is_vbenchs_own(vbench_path, made, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for clip in read_clips(str(made)):
        (videos / f"{clip.prompt}-0.mp4").write_bytes(clip.path.read_bytes())
    results = run_vbench(stage(videos, tmp_path / "out"))
    out, package = tmp_path / "front", Path(worker.__file__).parent
    suite = vbench_path / "vbench" / "VBench_full_info.json"
    places = {"package": str(package), "suite": str(suite), "out": str(out), "videos": str(videos)}
    done = subprocess.run(
        [sys.executable, "-c", FRONT_DOOR.format(**places)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (theirs,) = (json.loads(path.read_text()) for path in out.glob("*eval_results.json"))
    assert results.rows[0].mean == pytest.approx(theirs[FLICKER][0], abs=1e-12)


def test_a_damaged_clip_is_not_scored(vbench_path, made, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    first, second = read_clips(str(made))
    (videos / "whole-0.mp4").write_bytes(first.path.read_bytes())
    (videos / "cut-0.mp4").write_bytes(second.path.read_bytes()[: second.path.stat().st_size // 2])
    results = run_vbench(stage(videos, tmp_path / "out"))
    assert [clip.file for clip, _, _ in results.problems] == ["cut-0.mp4"]
    assert (results.rows[0].count, results.rows[0].expected) == (1, 2)
