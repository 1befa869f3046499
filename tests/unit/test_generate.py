"""Runs from prompts to folders: what is written, what is refused, what a dry run says."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tapvideo import generate
from tapvideo.config import ConfigError
from tapvideo.enable import TapSummary
from tapvideo.run_folder import list_jobs, read_prompts, run_folder, slug
from tapvideo.sample import RunFailed
from tapvideo.schedule import explicit_plan
from tapvideo.video_io import read_mp4, video_info


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_run_writes_videos_record_and_report(composed, random_overrides):
    folder = generate.run(composed(*random_overrides, "compare=true", "seeds=[0,7]"), command="tapvideo-generate x")
    clips = ["000-a-red-circle-seed0", "000-a-red-circle-seed7"]
    videos = [f"{clip}/{name}.mp4" for clip in clips for name in ("baseline", "video")]
    assert files(folder) == sorted([*videos, "report.html", "run.json"])
    info = video_info(folder / clips[0] / "video.mp4")
    assert (info.frames, info.width, info.height, info.fps) == (5, 32, 32, 8)
    record = json.loads((folder / "run.json").read_text())
    assert record["command"] == "tapvideo-generate x"
    assert record["config"]["steps"] == 14
    assert {"torch", "diffusers", "tapvideo"} <= set(record["versions"])
    assert record["plan"] == "###...#...#..#"
    for clip in record["clips"]:
        assert clip["full_steps"] == [0, 1, 2, 6, 10, 13]
        assert len(clip["forecast_steps"]) == 8
        assert all(seconds > 0 for seconds in clip["seconds"].values())
        assert set(clip["seconds"]) == {"text", "denoise", "vae", "write"}
        assert set(clip["shares"]) == {str(s) for s in clip["forecast_steps"]}
        assert sum(clip["shares"]["5"].values()) == pytest.approx(1)
        assert 0 < clip["tap_seconds"] < clip["seconds"]["denoise"]
        assert clip["tap_state_bytes"] > 0
        comparison = clip["comparison"]
        ratio = comparison["seconds"]["denoise"] / clip["seconds"]["denoise"]
        assert comparison["speedup"] == pytest.approx(ratio)
        assert not comparison["identical"]
        assert comparison["psnr"] > 10
        assert 0 < comparison["ssim"] <= 1
    mean, compared = record["mean"], [clip["comparison"] for clip in record["clips"]]
    assert mean["num_clips"] == 2
    assert mean["psnr"] == pytest.approx(sum(c["psnr"] for c in compared) / 2)
    assert mean["worst_psnr"] == min(c["psnr"] for c in compared)
    fastest, slowest = max(c["speedup"] for c in compared), min(c["speedup"] for c in compared)
    assert slowest <= mean["speedup"] <= fastest
    assert "<html" in (folder / "report.html").read_text().lower()


def test_run_with_every_step_full_is_identical_to_the_baseline(composed, random_overrides):
    folder = generate.run(composed(*random_overrides, "compare=true", "schedule=full"))
    record = json.loads((folder / "run.json").read_text())
    (clip,) = record["clips"]
    assert clip["comparison"]["identical"]
    assert (clip["comparison"]["psnr"], clip["comparison"]["ssim"]) == (None, pytest.approx(1))
    assert (record["mean"]["psnr"], record["mean"]["worst_psnr"]) == (None, None)
    assert clip["forecast_steps"] == []


def test_run_without_tap_has_no_baseline(composed, random_overrides, capsys):
    folder = generate.run(composed(*random_overrides, "tap=off", "compare=true", "steps=2", "verbose=true"))
    assert "nothing is compared: tap=off" in capsys.readouterr().out
    (clip,) = json.loads((folder / "run.json").read_text())["clips"]
    assert clip["comparison"] is None
    assert (clip["full_steps"], clip["forecast_steps"]) == ([0, 1], [])
    assert not list(folder.rglob("baseline.mp4"))


def test_quiet_run_prints_nothing(composed, random_overrides, capfd):
    generate.run(composed(*random_overrides, "compare=false"))
    assert capfd.readouterr() == ("", "")


def test_verbose_run_shows_kinds_of_steps(composed, random_overrides, capfd):
    generate.run(composed(*random_overrides, "compare=false", "verbose=true"))
    out, err = capfd.readouterr()
    assert "###...#...#..#" in out
    assert "report.html" in out
    assert "6 full, 8 forecast" in err


def test_planned_forecasts_that_were_not_made_fail_the_run(composed, random_overrides, monkeypatch):
    config = composed(*random_overrides, "compare=false")
    # A pipeline that does not say which step it is on: TAP runs every step in full.
    monkeypatch.setattr("tapvideo.models.hook.TapHook._locate", lambda *_: None)
    with pytest.raises(RunFailed, match="8 forecast steps were planned and none was made"):
        generate.run(config)


def test_lost_frames_fail_the_run_after_what_ranks_do_together(composed, random_overrides, monkeypatch):
    """One rank decodes: were it to stop before the trace is gathered, the others would wait for it there."""
    made, gathered = generate.sample, []

    def lose(*args, **kwargs):
        clip = made(*args, **kwargs)
        return replace(clip, frames=clip.frames * torch.nan)

    monkeypatch.setattr(generate, "sample", lose)
    monkeypatch.setattr("tapvideo.enable.Tap.gather_trace", lambda tap: gathered.append(tap))
    with pytest.raises(RunFailed, match="the VAE made NaN or infinite frames"):
        generate.run(composed(*random_overrides, "compare=false"))
    assert len(gathered) == 1


def test_check_forecasts_accepts_a_plan_without_any(composed):
    plan = generate.plan_steps(composed("schedule=full"))
    empty = TapSummary(50, list(range(50)), [], 0.0, 0, {})
    generate.check_forecasts(plan, empty)


def test_folder_is_the_same_for_the_same_videos_only(composed):
    def folder(*overrides):
        config = composed(*overrides)
        return run_folder(config, read_prompts(config))

    base = folder()
    assert base.parent == Path("outputs")
    assert base.name.startswith("wan_tiny-paper-")
    assert len(base.name) == len("wan_tiny-paper-") + 8
    assert folder("verbose=false", "dry_run=true") == base
    assert folder("output_dir=elsewhere").name == base.name
    names = {folder(o).name for o in ("steps=49", "seeds=[1]", "prompt=x", "tap=taylor1", "schedule.interval=5")}
    assert len({*names, base.name}) == 6


def test_prompt_file_counts_by_its_text(composed, tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("a red circle\n\n  a blue star  \n")
    configs = [composed(f"prompt_file={tmp_path / name}") for name in ("a.txt", "b.txt")]
    prompts = read_prompts(configs[0])
    assert prompts == ["a red circle", "a blue star"]
    assert run_folder(configs[0], prompts) == run_folder(configs[1], prompts)


@pytest.mark.parametrize("content", [None, b"", b"\n \n", b"\xff\xfe\x00"])
def test_prompt_files_without_prompts_are_refused(composed, tmp_path, content):
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="prompt_file="):
        read_prompts(composed(f"prompt_file={path}"))


def test_empty_prompt_is_refused(composed):
    with pytest.raises(ConfigError, match="prompt=''"):
        read_prompts(composed("prompt=''"))


@pytest.mark.parametrize(
    "text", ["../../etc/passwd", "a/b\\c", "..", "猫", "", "-rf", "x" * 300, "a\x00b\n", "~", "CON:"]
)
def test_slug_is_one_safe_path_component(text):
    name = slug(text)
    assert name == Path(name).name
    assert name
    assert len(name) <= 48
    assert not name.startswith((".", "-"))


def test_jobs_of_equal_slugs_have_folders_of_their_own(composed):
    jobs = list_jobs(composed("seeds=[0,1]"), ["猫", "犬", "猫!"])
    assert len({job.name for job in jobs}) == 6


def test_dry_run_prints_every_step_and_loads_nothing(composed, capsys):
    config = composed("dry_run=true", "steps=14", "model.weights=/nowhere", "scheduler=euler", "verbose=false")
    assert not generate.run(config).exists()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["step", "sigma", "timestep", "kind"]
    assert lines[1].split() == ["0", "1.0000", "1000.00", "full"]
    assert [line.split()[3] for line in lines[1:15]].count("forecast") == 8
    assert lines[-2:] == ["###...#...#..#", "6 full and 8 forecast of 14 steps"]


def test_dry_run_says_when_a_run_is_too_short(composed, capsys):
    generate.run(composed("dry_run=true", "steps=8"))
    assert "not accelerated: steps=8 is less than schedule.min_steps=12" in capsys.readouterr().out


def test_seed_and_quality_reach_the_video(composed, random_overrides):
    """Two seeds are two clips, and a worse rate factor is a smaller file."""
    sizes = {}
    for quality in (5, 45):
        folder = generate.run(composed(*random_overrides, "seeds=[0,7]", f"quality={quality}", "compare=false"))
        videos = sorted(folder.rglob("video.mp4"))
        sizes[quality] = [v.stat().st_size for v in videos]
        assert not torch.equal(read_mp4(videos[0]), read_mp4(videos[1]))
    assert all(best > worst for best, worst in zip(sizes[5], sizes[45], strict=True))


def test_run_refuses_what_is_not_as_planned():
    summary = TapSummary(3, [0, 1], [2], 0.0, 0, {})
    generate.check_forecasts(explicit_plan(3, steps=[0, 1]), summary)
    with pytest.raises(RunFailed, match=r"forecast steps \[1, 2\] were planned and \[2\] were made"):
        generate.check_forecasts(explicit_plan(3, steps=[0]), summary)
