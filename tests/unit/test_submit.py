"""What is given to sbatch, word for word, and what is refused before it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tapvideo.batch.submit import check_array, make_command, score_commands, split_arguments, templates
from tapvideo.checks import ConfigError
from tapvideo.cli import submit as cli
from tapvideo.cli.submit import main

FOLDER = Path("/data/out/run")
MINI = ["steps=4", "num_frames=5", "height=32", "width=32", "seeds=[0,1]"]


def test_a_batch_is_an_array_that_is_never_twice_in_the_queue():
    command = make_command("batch", FOLDER, ["shards=4", "prompts=a b.txt"], ["--partition=gpu"], shards=4)
    assert command.words({}) == [
        "sbatch", "--parsable", "--job-name=tapvideo-run", "--dependency=singleton",
        "--output=/data/out/run/logs/batch-%A_%a.out", "--array=0-3", "--partition=gpu",
        str(templates() / "batch.sbatch"), "shards=4", "prompts=a b.txt",
    ]  # fmt: skip
    assert str(command).endswith("batch.sbatch shards=4 'prompts=a b.txt'")


def test_flags_of_the_user_win_and_a_dependency_is_added_to_ours():
    flags = ["--array=3", "--dependency=afterok:7"]
    words = make_command("batch", FOLDER, [], flags, shards=4).words({})
    assert words.index("--array=0-3") < words.index("--array=3")
    assert [word for word in words if "dependency" in word] == ["--dependency=afterok:7,singleton"]


def test_a_generation_is_one_job():
    words = make_command("generate", FOLDER, ["prompt=$HOME"], ["--nodes=2"], shards=1).words({"HOME": "1"})
    assert not any("array" in word for word in words)
    assert words[-1] == "prompt=$HOME"
    assert "'prompt=$HOME'" in str(make_command("generate", FOLDER, ["prompt=$HOME"], [], shards=1))


def test_scores_wait_for_the_whole_batch():
    (command,) = score_commands("scenes", FOLDER, [], ["--partition=cpu"])
    words = command.words({"MAKE": "12"})
    assert {"--dependency=afterok:12", "--kill-on-invalid-dep=yes", "--partition=cpu"} <= set(words)
    assert words[-3:] == ["scenes", "videos=/data/out/run", "output_dir=/data/out/run/scores"]
    assert "--dependency=afterok:$MAKE" in str(command)


def test_each_dimension_is_a_job_and_one_collects_them():
    keys = ["dimensions=[temporal_flickering, dynamic_degree]", "python=/v/bin/python"]
    score, collect = score_commands("vbench", FOLDER, keys, [])
    assert score.environment == {"DIMENSIONS": "temporal_flickering dynamic_degree"}
    assert "--array=0-1" in score.words({})
    assert score.arguments[-1] == "python=/v/bin/python"
    assert "--dependency=afterok:9" in collect.words({"SCORE": "9"})
    assert collect.arguments[-3:] == [*keys, "collect=true"]
    assert len(score_commands("vbench", FOLDER, keys[1:], [])) == 1


def test_flags_and_keys_are_told_apart():
    given = ["a=1", "--partition", "gpu", "b=[1,2]", "-A", "me", "--exclusive", "c=x -y", "-d", "afterok:1", "--time=3"]
    assert split_arguments(given) == (
        ["a=1", "b=[1,2]", "c=x -y"],
        ["--partition", "gpu", "-A", "me", "--exclusive", "--dependency=afterok:1", "--time=3"],
    )
    with pytest.raises(ConfigError, match="'gpu' is neither KEY=VALUE nor a flag"):
        split_arguments(["a=1", "gpu"])


def test_array_tasks_are_shards():
    check_array(["--array=0-7%4", "-a3", "--partition=gpu"], 8)
    for flag in ("--array=0-8", "--array=8", "-a1,9%2"):
        with pytest.raises(ConfigError, match="there are 8 shards"):
            check_array([flag], 8)


@pytest.mark.parametrize("name", ["generate", "batch", "score"])
def test_templates_are_bash_and_readable(name):
    path = templates() / f"{name}.sbatch"
    subprocess.run(["bash", "-n", str(path)], check=True)
    lines = path.read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 120
    first_command = next(i for i, line in enumerate(lines[1:], 1) if line and not line.startswith("#"))
    assert (
        max(i for i, line in enumerate(lines) if line.startswith("#SBATCH")) < first_command
    )  # sbatch reads no further


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text(
        "a red circle moving left on a blue striped background\n" * 2 + "a green star growing on a red plain background"
    )
    return [*MINI, f"prompts={path}", f"output_dir={tmp_path / 'out'}"]


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """Stand-ins for SLURM's commands, which write down how they were called."""
    log, bin_folder = tmp_path / "calls", tmp_path / "bin"
    bin_folder.mkdir()
    for name, does in (
        ("sbatch", 'n=$(grep -c ^sbatch "$LOG"); [ $n != "$BAD" ] || exit 1; echo "4$n;c"'),
        ("squeue", 'echo "$QUEUED"'),
        ("scancel", ":"),
    ):
        path = bin_folder / name
        path.write_text(f'#!/bin/sh\necho {name} "$@" >>"$LOG"\n{does}\n')
        path.chmod(0o755)
    for key, value in {"PATH": f"{bin_folder}:{os.environ['PATH']}", "LOG": str(log), "QUEUED": "", "BAD": ""}.items():
        monkeypatch.setenv(key, value)
    return lambda: log.read_text().splitlines() if log.exists() else []


def leave(*arguments):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    return left.value.code


def test_dry_run_prints_and_touches_nothing(prompts, queue, capsys, tmp_path):
    main(["batch", *prompts, "shards=2", "--dry-run", "--score=scenes"])
    out = capsys.readouterr().out
    assert "4 clips in 2 shards, 0 are there" in out
    assert out.count("$(sbatch --parsable") == 2
    assert queue() == []
    assert not (tmp_path / "out").exists()


def test_jobs_are_submitted_in_a_chain(prompts, queue, capsys, tmp_path):
    main(["batch", *prompts, "shards=2", "--score=scenes", "--partition=gpu", "--score-flag=--partition=cpu"])
    asked, make, score = queue()
    assert asked.startswith("squeue --noheader --me --name=tapvideo-wan_tiny-default-uncalibrated-batch-")
    assert "--partition=gpu" in make
    assert "--dependency=afterok:41 " in score
    assert "--partition=cpu" in score
    assert "# SCORE=42" in capsys.readouterr().out
    (folder,) = (tmp_path / "out").iterdir()
    assert (folder / "logs").is_dir()


def test_a_run_that_is_queued_is_refused(prompts, queue, capsys, monkeypatch):
    monkeypatch.setenv("QUEUED", "7\n7")
    assert leave("batch", *prompts) == 4
    assert "is in the queue already, as job 7;" in capsys.readouterr().err
    main(["batch", *prompts, "--again"])
    assert "--dependency=singleton" in queue()[-1]


def test_half_a_chain_is_cancelled(prompts, queue, capsys, monkeypatch):
    monkeypatch.setenv("BAD", "2")
    assert leave("batch", *prompts, "--score=scenes") == 1
    assert queue()[-1] == "scancel 41"
    assert "cancelled job 41" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["bach"], "'bach' cannot be submitted"),
        (["batch", "stpes=3"], "stpes is no key; did you mean steps"),
        (["batch", "height=33"], "height=33"),
        (["batch", "shards=0"], "shards=0"),
        (["batch", "shards=2", "--array=2"], "there are 2 shards"),
        (["batch", "model.weights=nowhere"], "model.weights='nowhere'"),
        (["batch", "--score=vbnch"], "--score='vbnch'"),
        (["batch", "--score=vbench", "--score-key=dimensions=[x]"], "dimensions='x'"),
        (["batch", "--score=vbench", "--score-key=pyton=x"], "pyton"),
        (["generate", "--score=vbench", "prompt=x"], "--score='vbench' is of batches"),
        (["generate", "num_frames=4", "prompt=x"], "num_frames=4"),
    ],
)
def test_what_would_fail_in_the_job_fails_here(arguments, told, prompts, queue, capsys):
    kind, *rest = arguments
    shared = prompts if kind != "generate" else MINI[2:]
    assert leave(kind, *shared, *rest) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith(cli.PROGRAM)]
    assert told in line
    assert queue() == []


def test_prompts_that_no_score_is_for_are_refused(prompts, queue, capsys, tmp_path):
    (tmp_path / "p.txt").write_text("a/b")
    assert leave("batch", *prompts, "--score=scenes") == 2
    assert "--score=scenes: 'a/b' is no caption of the drawn world" in capsys.readouterr().err


def test_no_slurm_is_said(prompts, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert leave("batch", *prompts) == 1
    assert "sbatch is not here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_jobs_run_what_runs_here(prompts, queue, monkeypatch):
    seen = []
    call = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: seen.append(k["env"]["TAPVIDEO_PYTHON"]) or call(*a, **k))
    main(["batch", *prompts])
    assert set(seen) == {sys.executable}


def test_usage(capsys):
    assert leave("--help") == 0
    assert "--dry-run" in capsys.readouterr().out
