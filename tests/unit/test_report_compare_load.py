"""Pages from a results.json: the same page again, or one line that says what is wrong."""

import json
from dataclasses import asdict
from pathlib import Path

import comparison_sample as sample
import pytest
from comparison_sample import make_comparison

from tapvideo.cli import report as cli
from tapvideo.compare.results import Comparison
from tapvideo.report.compare import render_comparison
from tapvideo.report.compare_load import ResultsError, read_comparison


@pytest.fixture
def small() -> Comparison:
    """Three methods at two budgets, two clips each."""
    methods = ("tap-paper", "tap-taylor1", "steps-unipc")
    return make_comparison(["full.mp4", "tap.mp4"], methods=methods, budgets=(2.0, 2.5), seeds=(0, 1))


def test_results_json_makes_the_same_page_again(tmp_path: Path, small: Comparison, capsys: pytest.CaptureFixture[str]):
    small.diagnostics = sample.diagnostics()
    (tmp_path / "results.json").write_text(json.dumps(asdict(small)))
    assert read_comparison(tmp_path) == small
    cli.main([str(tmp_path)])
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render_comparison(tmp_path, small)


def test_keys_of_a_later_version_are_ignored(tmp_path: Path, small: Comparison):
    raw = asdict(small) | {"later": 1}
    raw["clips"][0]["later"] = 1
    (tmp_path / "results.json").write_text(json.dumps(raw))
    assert read_comparison(tmp_path) == small


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("{", "no JSON"),
        ("[]", r"is \[\]; allowed: an object of Comparison"),
        ("{}", "has no 'title'"),
        ('{"title": 3}', "title is 3; allowed: str"),
        ("[" * 100_000, "no JSON|too deeply"),
    ],
)
def test_a_wrong_results_json_is_one_line(tmp_path: Path, text: str | None, message: str, capsys):
    if text is not None:
        (tmp_path / "results.json").write_text(text)
    with pytest.raises(ResultsError, match=message):
        read_comparison(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        cli.main([str(tmp_path)])
    assert exit_info.value.code == cli.EXIT_FAILED
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clips": {}}, r"clips is \{\}; allowed: list"),
        ({"clips": [3]}, r"clips\[0\] is 3"),
        ({"clips": [{"method": "a"}]}, r"clips\[0\] has no 'budget'"),
        ({"table": [{"method": "a", "label": "b", "budget": "2"}]}, r"table\[0\].budget is \"2\"; allowed: float"),
    ],
)
def test_wrong_parts_of_results_are_named(tmp_path: Path, small: Comparison, change: dict, message: str):
    (tmp_path / "results.json").write_text(json.dumps(asdict(small) | change))
    with pytest.raises(ResultsError, match=message):
        read_comparison(tmp_path)


def test_figures_in_results_must_be_numbers(tmp_path: Path, small: Comparison):
    raw = asdict(small)
    raw["clips"][1]["metrics"]["psnr"] = "high"
    (tmp_path / "results.json").write_text(json.dumps(raw))
    with pytest.raises(ResultsError, match=r"clips\[1\].metrics holds something else"):
        read_comparison(tmp_path)
