"""The common frame of the commands: what ends them, with which code and which one line."""

import os
import signal
import subprocess
import sys
from importlib.metadata import version

import pytest
from omegaconf.errors import OmegaConfBaseException

from tapvideo.cli import scenes
from tapvideo.cli.entry import complain, enter


@pytest.fixture(autouse=True)
def handler():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def terminated():
    os.kill(os.getpid(), signal.SIGTERM)


def interrupted():
    raise KeyboardInterrupt


@pytest.mark.parametrize(("ranks", "told"), [("1", "(SIGTERM); again"), ("2", "ended: see its report); again")])
def test_sigterm_is_told_with_what_may_have_sent_it(monkeypatch, capsys, ranks, told):
    monkeypatch.setenv("WORLD_SIZE", ranks)
    with pytest.raises(SystemExit) as end:
        enter(terminated, "name", then="; again")
    assert end.value.code == 143
    err = capsys.readouterr().err
    assert err.startswith("name: told to stop (SIGTERM")
    assert err.endswith(f"{told}\n")


@pytest.mark.parametrize("app", [terminated, interrupted])
def test_one_rank_speaks_for_all(monkeypatch, capsys, app):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        enter(app, "name")
    assert capsys.readouterr() == ("", "")


def test_interrupted_is_told(capsys):
    with pytest.raises(SystemExit) as end:
        enter(interrupted, "name", then="; again")
    assert end.value.code == 130
    assert capsys.readouterr().err == "name: interrupted; again\n"


def refuse():
    raise ValueError("Hydra's own")


def test_what_is_refused_before_the_command_begins_is_told_by_one_rank_of_a_machine(monkeypatch, capsys):
    for local, told in (("0", "name: Hydra's own\n"), ("1", "")):
        monkeypatch.setenv("LOCAL_RANK", local)
        with pytest.raises(SystemExit) as end:
            enter(refuse, "name")
        assert end.value.code == 2
        assert capsys.readouterr().err == told


@pytest.mark.parametrize("kind", [ValueError, OmegaConfBaseException])
def test_what_goes_wrong_inside_of_the_command_is_no_config_error(monkeypatch, kind):
    def run(*_, **__):
        raise kind("a bug")

    monkeypatch.setattr("tapvideo.cli.scenes.run_scenes", run)
    monkeypatch.setattr("sys.argv", ["scenes", "videos=x"])
    with pytest.raises(kind, match="a bug"):
        scenes.main()


@pytest.mark.parametrize("before", [None, "0"])
def test_hydras_variable_is_the_users(monkeypatch, before):
    seen = []
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    if before is not None:
        monkeypatch.setenv("HYDRA_FULL_ERROR", before)
    enter(lambda: seen.append(os.environ["HYDRA_FULL_ERROR"]), "name")
    assert (seen, os.environ.get("HYDRA_FULL_ERROR")) == (["1"], before)


@pytest.mark.parametrize("code", [0, 1, 2, None])
def test_an_exit_of_the_command_is_its_own(capsys, code):
    with pytest.raises(SystemExit) as end:
        enter(lambda: sys.exit(code), "name")
    assert end.value.code == code
    assert capsys.readouterr() == ("", "")


def test_a_complaint_is_one_line(capsys):
    complain("name", "first\nsecond")
    assert capsys.readouterr().err == "name: first second\n"


def test_the_version_is_ours(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["name", "--version"])
    enter(refuse, "name")
    assert capsys.readouterr().out == f"tapvideo {version('tapvideo')}\n"


@pytest.mark.parametrize(
    ("app", "arguments"),
    [("print('line\\n' * 100_000)", []), ("print('line') or sys.exit(2)", []), ("None", ["--version"])],
)
def test_a_reader_who_has_had_enough_is_no_error(app, arguments):
    """As `head` of a dry run."""
    script = f"import sys; from tapvideo.cli.entry import enter; enter(lambda: {app}, 'name')"
    own = {**os.environ, "PYTHONUNBUFFERED": ""}
    command = [sys.executable, "-c", script, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=own) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_another_pipe_that_breaks_is_told():
    def lost():
        raise BrokenPipeError("a socket")

    with pytest.raises(BrokenPipeError, match="a socket"):
        enter(lost, "name")
