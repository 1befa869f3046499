"""The part that VBench's own Python runs."""

import ast
import sys
from pathlib import Path

import pytest

from tapvideo.vbench import worker


@pytest.mark.parametrize(
    ("dimension", "result", "expected"),
    [
        ("imaging_quality", {"video_results": 70.0}, (0.7, None)),
        ("dynamic_degree", {"video_results": True}, (1.0, None)),
        ("color", None, (None, None)),
    ],
)
def test_worker_reads_vbenchs_scales(dimension, result, expected):
    assert worker.read_score(dimension, result) == expected


def test_worker_names_files_for_human_action_alone(tmp_path):
    item = {"prompt": "A person is riding/pushing a bike", "path": "/x/y.mp4", "sha256": "s", "auxiliary_info": None}
    seen = []

    def compute(infos):
        seen.extend(infos[0]["video_list"])
        return [{"video_path": seen[-1], "video_results": 0.5}]

    assert worker.score_batch("human_action", [item], compute)[0]["score"] == 0.5
    worker.score_batch("scene", [item], compute)
    assert [Path(path).name for path in seen] == ["A person is riding pushing a bike-0.mp4", "video.mp4"]


def test_worker_runs_without_tapvideo():
    source = ast.parse(Path(worker.__file__).read_text())
    names = {alias.name for node in ast.walk(source) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(source) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= {*sys.stdlib_module_names, "torch"}
    ast.parse(Path(worker.__file__).read_text(), feature_version=(3, 10))
