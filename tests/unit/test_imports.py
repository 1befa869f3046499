"""Imports run downward: who may import what. A rule that is broken is a design that has changed."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "tapvideo"
PURE = (
    "predictors/", "probe.py", "select.py", "schedule.py", "history.py", "twin.py", "chunks.py", "recompute.py",
    "parallel/layout.py", "parallel/kept.py", "parallel/lse.py", "parallel/ledger.py", "calibration/weights.py",
    "calibration/nodes.py",
)  # fmt: skip
PEERS = tuple(f"compare/{name}.py" for name in ("diffusers_peers", "rules", "flops"))  # hooks and caches
HOMES = {
    "diffusers": ("models/", "pipeline.py", "schedulers.py", "tiny/", *PEERS),
    "transformers": ("pipeline.py", "tiny/"),
    "omegaconf": ("config.py", "cli/"),
    "hydra": ("cli/", "parallel/plan.py"),
    "xfuser": ("parallel/",),
    "distvae": ("parallel/",),
    "matplotlib": ("report/",),
    "imageio_ffmpeg": ("video_io.py", "video_read.py", "metrics/"),
    "decord": ("video_read.py",),
    "flip_evaluator": ("metrics/",),
}
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Full names of all modules that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


def roots(module: str) -> set[str]:
    return {name.partition(".")[0] for name in imports(PACKAGE / module)}


def lies_in(module: str, homes: tuple[str, ...]) -> bool:
    return any(module == home or (home.endswith("/") and module.startswith(home)) for home in homes)


@pytest.mark.parametrize("module", [m for m in MODULES if lies_in(m, PURE)])
def test_pure_files_import_torch_only(module):
    standard = {"collections", "contextlib", "dataclasses", "enum", "functools", "itertools", "math", "typing"}
    assert roots(module) <= {"torch", "jaxtyping", "tapvideo"} | standard
    inside = {name for name in imports(PACKAGE / module) if name.startswith("tapvideo")}
    allowed = {"tapvideo." + home.removesuffix(".py").rstrip("/").replace("/", ".") for home in PURE}
    assert all(any(name == a or name.startswith(a + ".") for a in allowed) for name in inside), inside


@pytest.mark.parametrize("library", HOMES)
def test_library_is_imported_at_home_only(library):
    assert [m for m in MODULES if library in roots(m) and not lies_in(m, HOMES[library])] == []


def test_models_and_stack_do_not_know_the_pipeline():
    upward = {"tapvideo.pipeline", "tapvideo.schedulers", "tapvideo.generate", "tapvideo.outputs", "tapvideo.cli"}
    low = (
        "models/",
        "stack.py",
        "trace.py",
        "config.py",
        "metrics/",
        "video_io.py",
        "video_read.py",
        "enable.py",
        *PURE,
    )
    assert [m for m in MODULES if lies_in(m, low) and imports(PACKAGE / m) & upward] == []


def test_nothing_imports_a_command_line():
    assert [
        m
        for m in MODULES
        if not m.startswith("cli/") and any(n.startswith("tapvideo.cli") for n in imports(PACKAGE / m))
    ] == []
