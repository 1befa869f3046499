"""What the README, `.ci/run`, `pyproject.toml` and `constraints.txt` promise each other."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TEST_COMMAND = re.compile(r"^python[0-9.]* -m venv .* -m pytest$", re.MULTILINE)  # as in .ci/run


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_readme_has_the_test_command_that_ci_runs():
    (command,) = TEST_COMMAND.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert "-c constraints.txt" in command
    assert ".[test]" in command
    assert "grep -m 1 -E '^python[0-9.]* -m venv .* -m pytest$' README.md" in (ROOT / ".ci" / "run").read_text()


def test_ci_fails_when_the_test_command_fails(tmp_path):
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    (tmp_path / "README.md").write_text("python -m venv .venv && false && .venv/bin/python -m pytest\n")
    assert subprocess.run(["bash", ".ci/run"], cwd=tmp_path, check=False, capture_output=True).returncode != 0
    (tmp_path / "README.md").write_text("no command\n")
    assert subprocess.run(["bash", ".ci/run"], cwd=tmp_path, check=False, capture_output=True).returncode != 0


def test_every_dependency_has_a_lower_bound_and_a_tested_version_above_it():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in lines if not line.startswith("#"))
    tested = {canonical(name): version for name, version in tested.items()}
    extra = PROJECT["optional-dependencies"]["test"]
    for requirement in map(Requirement, [*PROJECT["dependencies"], *extra]):
        assert any(s.operator == ">=" for s in requirement.specifier), requirement
        assert not any(s.operator in ("==", "~=", "<", "<=") for s in requirement.specifier), requirement
        assert requirement.specifier.contains(tested[canonical(requirement.name)]), requirement
    assert all("+" not in version for version in tested.values())
