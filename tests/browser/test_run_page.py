"""A run's page in a real browser: its two players share the comparison's code."""

from pathlib import Path
from typing import Any

import comparison_sample as sample
import pytest
import torch
from comparison_sample import FPS

from tapvideo.report import ChoiceMap, Clip, Report, Step, write_report
from tapvideo.schedule import StepKind
from tapvideo.video_io import write_png

pytestmark = pytest.mark.browser

TIMES = "() => [...document.querySelectorAll('video')].map((v) => v.currentTime)"


@pytest.fixture(scope="module")
def run_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    for name, shift in (("tap", 1), ("full", 0)):
        sample.write_square(folder / f"{name}.mp4", shift=shift)
    steps = [Step(0, StepKind.FULL, 1.0, 0.5, {}), Step(1, StepKind.FORECAST, 0.5, 0.01, {"reuse": 1.0})]
    clip = Clip("a square", 0, folder / "tap.mp4", folder / "full.mp4", 30.0, 0.9, 1.0, 2.0, steps, [])
    write_report(folder / "report.html", Report("a run", "command", {}, [clip]))
    return folder / "report.html"


def test_a_runs_players_play_in_sync(run_page: Path, open_page: Any):
    page = open_page(run_page, calm=False)
    page.wait_for_function("() => [...document.querySelectorAll('video')].every((v) => v.currentTime > 0.2)")
    times = page.evaluate(TIMES)
    assert max(times) - min(times) <= 1 / FPS or max(times) > 1.8
    page.locator(".scrub").fill("9")
    page.wait_for_function("() => [...document.querySelectorAll('video')].every((v) => v.paused && !v.seeking)")
    assert page.evaluate(TIMES) == pytest.approx([9.5 / FPS] * 2, abs=1e-3)
    page.click(".compare")
    assert page.locator(".difference canvas").is_visible()


def test_a_runs_page_fits_a_phone(run_page: Path, open_page: Any):
    page = open_page(run_page, width=390, height=844)
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0


def test_a_page_of_pictures_has_no_player_but_shows_their_difference(tmp_path: Path, open_page: Any):
    for name, value in (("tap", 0.25), ("full", 0.75)):
        write_png(tmp_path / f"{name}.png", torch.full((16, 16, 3), value))
    steps = [Step(0, StepKind.FULL, 1.0, 0.5, {}), Step(1, StepKind.FORECAST, 0.5, 0.01, {"reuse": 1.0})]
    maps = [ChoiceMap(1, "cond", ("reuse",), torch.zeros(1, 2, 2, dtype=torch.int8))]
    clip = Clip("a square", 0, tmp_path / "tap.png", tmp_path / "full.png", 6.0, 0.5, 1.0, 2.0, steps, maps)
    write_report(tmp_path / "report.html", Report("a run", "command", {}, [clip]))
    page = open_page(tmp_path / "report.html")
    assert page.locator(".player .play").count() == 0
    page.click(".compare")
    pixel = "() => [...document.querySelector('.difference canvas').getContext('2d').getImageData(3, 3, 1, 1).data]"
    assert page.evaluate(pixel) == [127, 127, 127, 255]
    page.locator(".maps").scroll_into_view_if_needed()
    page.wait_for_function("() => document.querySelector('.latents .picture').width === 16")
