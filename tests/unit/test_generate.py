import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tapvideo import generate
from tapvideo.cli.generate import main
from tapvideo.config import ConfigError
from tapvideo.enable import TapSummary
from tapvideo.run_folder import list_jobs, read_prompts, run_folder, slug
from tapvideo.sample import RunFailed
from tapvideo.schedule import explicit_plan
from tapvideo.video_io import read_mp4, video_info

LAUNCH = Path(__file__).parents[2] / "launch" / "generate.py"


def launch(*overrides, cwd, **env):
    return subprocess.run(
        [sys.executable, str(LAUNCH), *overrides], cwd=cwd, env=os.environ | env, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip


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


def test_run_without_tap_has_no_baseline(composed, random_overrides):
    folder = generate.run(composed(*random_overrides, "tap=off", "compare=true", "steps=2"))
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


@pytest.fixture
def command_line(monkeypatch, capfd):
    """The console script in this process: overrides in, exit code, stdout and stderr out."""

    def call(*overrides):
        monkeypatch.setattr("sys.argv", ["tapvideo-generate", *overrides])
        handler = signal.getsignal(signal.SIGTERM)
        try:
            main()
        except SystemExit as stop:
            return stop.code, *capfd.readouterr()
        finally:
            signal.signal(signal.SIGTERM, handler)
        return 0, *capfd.readouterr()

    return call


@pytest.mark.parametrize("override", ["+stepz=3", "steps=abc", "tap.proxy=l7", "height=-1", "model.weights=/nowhere"])
def test_config_errors_are_one_line_and_exit_2(command_line, override):
    code, _, err = command_line(override)
    assert code == 2
    assert err.startswith("tapvideo-generate: ")
    assert err.count("\n") == 1


def test_config_errors_are_told_by_one_rank(command_line, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")  # of one machine: on another the same command may be right
    assert command_line("+stepz=3") == (2, "", "")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("stepz=3", "stepz is no key; did you mean steps? --cfg job shows all"),
        ("tap.choise=token", "tap.choise is no key; did you mean tap.choice"),
        ("steps.deep=3", "steps.deep is no key; --cfg job shows all that are"),
        ("parallel.foo=3", "parallel.foo is no key; allowed: parallel.attention, parallel.cfg, "),
        ("model.call.crf=0", "model.call.crf is not among the arguments that the yaml lists; allowed: +model.call.crf"),
        ("tap=foo", "tap=foo is not there; allowed: calibrated, default, "),
        ("steps=1,2", "Ambiguous value for argument 'steps=1,2'; 1. To use it as a list"),
        ("+steps=3", "Could not append to config. An item is already at 'steps'. Either remove + prefix"),
        ("tap=null", "Config group override must be a string"),
        ("~nope", "Could not delete from config. 'nope' does not exist."),
        ("steps", "Error parsing override 'steps'; missing EQUAL at '<EOF>'\n"),
    ],
)
def test_what_hydra_refuses_is_one_line_and_exit_2(command_line, monkeypatch, override, told):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    code, out, err = command_line(override)
    assert (code, out) == (2, "")
    assert err.startswith(f"tapvideo-generate: {told}")
    assert err.count("\n") == 1
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_failed_run_is_one_line_and_exit_1(command_line, random_overrides, monkeypatch):
    monkeypatch.setattr("tapvideo.models.hook.TapHook._locate", lambda *_: None)
    code, _, err = command_line(*random_overrides, "compare=false")
    assert code == 1
    assert "none was made" in err
    assert "Traceback" not in err


def test_record_holds_the_command(command_line, random_overrides, tmp_path):
    assert command_line(*random_overrides, "compare=false")[0] == 0
    record = json.loads(next(tmp_path.rglob("run.json")).read_text())
    assert record["command"].startswith("tapvideo-generate ")
    assert "'prompt='\"'\"'a red circle'\"'\"''" in record["command"]


@pytest.mark.slow
def test_launcher_works_from_any_folder_and_leaves_nothing(tmp_path):
    shown = launch("--cfg", "job", cwd=tmp_path)
    assert shown.returncode == 0
    assert "flow_shift" in shown.stdout
    assert files(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_no_half_file(random_overrides, tmp_path, number, code):
    """Two prompts: the signal comes once the first clip is recorded, in the midst of the second."""
    overrides = [*random_overrides, "seeds=[0,1]", "compare=false", "steps=14"]
    overrides += ["height=256", "width=256"]
    process = subprocess.Popen(
        [sys.executable, str(LAUNCH), *overrides], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 200
    while not list(tmp_path.rglob("run.json")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err.decode()
    assert b"Traceback" not in err
    assert err.count(b"tapvideo-generate: ") == 1
    found = [p for p in files(tmp_path) if "outputs" in p]
    assert [Path(p).name for p in found] == ["video.mp4", "run.json"]
    assert video_info(next(tmp_path.rglob("video.mp4"))).frames == 5


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
