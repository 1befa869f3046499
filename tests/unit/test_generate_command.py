"""The command line of a run: exit codes, lines on stderr, signals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tapvideo.cli.generate import main
from tapvideo.video_io import video_info

LAUNCH = Path(__file__).parents[2] / "launch" / "generate.py"


def launch(*overrides, cwd, **env):
    return subprocess.run(
        [sys.executable, str(LAUNCH), *overrides], cwd=cwd, env=os.environ | env, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


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
        ("speedup=3", "speedup is no key; did you mean schedule.speedup? --cfg job shows all"),
        ("tap.interval=3", "tap.interval is no key; did you mean schedule.interval?"),
        ("a red circle", "'a red circle' has no key; allowed: prompt='a red circle'"),
        ("seeds=3", "seeds is a list; allowed: seeds=[...]"),
        ("steps=2.5", "steps: Value '2.5' of type 'float' could not be converted to Integer; allowed: a whole number"),
        ("guidance=high", "guidance: Value 'high' of type 'str' could not be converted to Float; allowed: a number"),
        ("compare=maybe", "compare: Value 'maybe' is not a valid bool (type str); allowed: true, false"),
        ("steps=null", "steps=null says nothing; allowed: a value"),
        ("prompt=null", "prompt='' has no prompt; allowed"),
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


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("height=63", "height=63 "),
        ("+model.call.guidance_scale_2=3", "model.call.guidance_scale_2=3 is no argument of a WanPipeline; allowed: "),
    ],
)
def test_what_the_model_cannot_do_is_refused(command_line, random_overrides, override, told, tmp_path):
    dry = ["dry_run=true"] if override.startswith("height") else []  # as far as it can be known without the weights
    code, _, err = command_line(*random_overrides, override, *dry)
    assert code == 2
    assert err.startswith(f"tapvideo-generate: {told}")
    assert not [*tmp_path.glob("outputs/*")]  # no folder is left with nothing in it


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
