"""The comparison's page in a real browser: it plays in sync, sorts, fits a phone, and asks nobody for anything."""

from pathlib import Path
from typing import Any

import comparison_sample as sample
import pytest
from comparison_sample import FPS, FRAMES, NASTY, make_comparison

from tapvideo.compare.results import Comparison
from tapvideo.report.compare import write_comparison_report

pytestmark = pytest.mark.browser

FRAME = 1 / FPS
TIMES = "() => [...document.querySelectorAll('.screens video')].map((v) => v.currentTime)"
READY = """() => {
  const videos = [...document.querySelectorAll('.screens video')];
  return videos.length && videos.every((v) => v.readyState >= 2);
}"""
BRIGHTEST = """() => [...document.querySelectorAll('.screen canvas:not([hidden])')].map((c) => {
  const { data } = c.getContext('2d').getImageData(0, 0, c.width, c.height);
  return Math.max(...data.filter((_, i) => i % 4 < 3));
})"""
BUTTONS = """() => [...document.querySelectorAll('button, select')]
  .filter((b) => b.offsetParent).map((b) => b.offsetHeight)"""
SETTLED = "() => [...document.querySelectorAll('.screens video')].every((v) => v.paused && !v.seeking)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("comparison")
    for i in range(4):
        sample.write_square(path / f"{i}.mp4", shift=i, noise=0.02 * i)
    return path


def written(folder: Path, name: str, comparison: Comparison) -> Path:
    """The comparison's page under its own name, so that tests do not share a file."""
    return write_comparison_report(folder, comparison).rename(folder / f"{name}.html")


@pytest.fixture(scope="module")
def usual(folder: Path) -> Path:
    """12 methods at 4 budgets, 2 clips each, with diagnostics and failures."""
    found = make_comparison([f"{i}.mp4" for i in range(4)], seeds=(0, 1))
    found.diagnostics = sample.diagnostics()
    return written(folder, "usual", found)


@pytest.fixture(scope="module")
def hostile(folder: Path) -> Path:
    """Every text is an attack, and long."""
    found = make_comparison([f"{i}.mp4" for i in range(4)], prompts=(NASTY + "W" * 300,))
    found.title = found.command = found.device = NASTY + "W" * 300
    for row in found.table:
        row.note = NASTY + "W" * 120
        row.label = NASTY + row.label
    found.diagnostics = {"verdict": NASTY, NASTY: {NASTY: [1, 2], "x": [2, 3]}}
    return written(folder, "hostile", found)


def overflow(page: Any) -> int:
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def spread(times: list[float]) -> float:
    return max(times) - min(times)


def at_frame(page: Any) -> int:
    return int(page.inner_text(".frame").split(" / ")[0]) - 1


def test_players_play_in_sync_and_stop_on_one_frame(usual: Path, open_page: Any):
    page = open_page(usual)
    page.wait_for_function(READY)
    assert page.locator(".screens video").count() == 4
    page.click(".player .play")
    page.wait_for_function(f"() => document.querySelector('.screens video').currentTime > {2 * FRAME}")
    spreads = []
    for _ in range(20):
        page.wait_for_timeout(100)
        times = page.evaluate(TIMES)
        # Around the end of the clip one video may have begun again before the others.
        if FRAME < min(times) and max(times) < (FRAMES - 2) * FRAME:
            spreads.append(spread(times))
    assert spreads
    assert sorted(spreads)[len(spreads) * 3 // 4] <= FRAME  # one may stutter where the machine has other work
    page.click(".player .play")
    page.wait_for_function(SETTLED)
    times = page.evaluate(TIMES)
    assert spread(times) < 1e-3
    assert int(times[0] * FPS) == at_frame(page)


def test_a_video_that_falls_behind_is_brought_back(usual: Path, open_page: Any):
    page = open_page(usual)
    page.wait_for_function(READY)
    page.locator(".rate").select_option("0.25")
    page.click(".player .play")
    page.wait_for_function(f"() => document.querySelector('.screens video').currentTime > {4 * FRAME}")
    page.evaluate("() => { document.querySelectorAll('.screens video')[1].currentTime = 0; }")
    together = f"""() => {{
      const times = [...document.querySelectorAll('.screens video')].map((v) => v.currentTime);
      return Math.min(...times) > {2 * FRAME} && Math.max(...times) - Math.min(...times) <= {FRAME};
    }}"""
    page.wait_for_function(together, timeout=5000)  # at a quarter of the speed, before all begin again


def test_scrubber_and_frame_steps_move_all_videos(usual: Path, open_page: Any):
    page = open_page(usual)
    page.wait_for_function(READY)
    page.locator(".scrub").fill("12")
    page.wait_for_function(SETTLED)
    assert page.evaluate(TIMES) == pytest.approx([12.5 * FRAME] * 4, abs=1e-3)
    page.click(".forward")
    page.click(".forward")
    page.click(".back")
    page.wait_for_function(SETTLED)
    assert page.evaluate(TIMES) == pytest.approx([13.5 * FRAME] * 4, abs=1e-3)
    page.locator(".scrub").press("ArrowLeft")
    page.wait_for_function(SETTLED)
    assert at_frame(page) == 12
    for _ in range(10):
        page.click(".forward")
    assert at_frame(page) == FRAMES - 1


def test_another_clip_budget_and_methods(usual: Path, open_page: Any):
    page = open_page(usual)
    page.wait_for_function(READY)
    names = page.locator(".screens figcaption b").all_inner_texts()
    assert names[0].strip() == "Un-accelerated, 50 UniPC steps"
    page.locator(".scrub").fill("5")
    chips = page.locator(".clips .chip")
    for name in ("MagCache", "DBCache with TaylorSeer", "TAP, reuse"):
        chips.filter(has_text=name).click()
    names = [text.strip() for text in page.locator(".screens figcaption b").all_inner_texts()]
    assert names[0] == "Un-accelerated, 50 UniPC steps"
    assert len(names) == 5  # four at most beside it: the one chosen first made room
    assert names[-3:] == ["MagCache", "DBCache with TaylorSeer", "TAP, reuse"]
    page.wait_for_function(READY)
    page.wait_for_function(SETTLED)
    assert page.evaluate(TIMES) == pytest.approx([5.5 * FRAME] * 5, abs=1e-3)  # still at the same frame
    page.locator(".budgets button").last.click()
    assert "10 passes" in page.locator(".screens figcaption").last.inner_text()
    page.locator(".pair").select_option("1")
    page.wait_for_function(READY)
    for name in names[1:4]:
        chips.filter(has_text=name).first.click()
    chips.filter(has_text="TAP, reuse").click()  # the last one stays
    assert page.locator(".screens video").count() == 2


def test_the_difference_is_black_where_videos_are_equal(usual: Path, open_page: Any):
    page = open_page(usual)
    page.wait_for_function(READY)
    page.click(".compare")
    page.wait_for_timeout(100)
    by_video = dict(
        zip(page.locator(".screens figcaption b").all_inner_texts()[1:], page.evaluate(BRIGHTEST), strict=True)
    )
    same = [m for i, m in enumerate(sample.METHODS) if i % 4 == 0]  # their clip is the un-accelerated clip's file
    for method, (label, *_) in sample.METHODS.items():
        for name, brightest in by_video.items():
            if name.strip() == label:
                assert (brightest < 8) == (method in same), (name, brightest)
    assert len(by_video) == 3


def test_the_table_sorts_by_every_column_with_clicks_and_keys(usual: Path, open_page: Any):
    page = open_page(usual)
    page.locator(".filter button").first.click()
    heads = page.locator("thead th")
    keys = "(i) => [...document.querySelectorAll('tbody tr')].map((r) => r.cells[i].dataset.sort)"
    for i in range(heads.count()):
        head = heads.nth(i)
        head.locator("button").focus()
        page.keyboard.press("Enter")
        first = head.get_attribute("aria-sort")
        assert first in ("ascending", "descending")
        assert page.locator("thead [aria-sort]").count() == 1
        found = [check_order(page.evaluate(keys, i), first == "descending")]
        head.locator("button").click()
        second = head.get_attribute("aria-sort")
        assert {first, second} == {"ascending", "descending"}
        found.append(check_order(page.evaluate(keys, i), second == "descending"))
        assert found == [True, True], page.evaluate(keys, i)


def check_order(keys: list[str], descending: bool) -> bool:
    """Whether numbers are in order and nothing is last."""
    given = [k for k in keys if k != ""]
    if keys[: len(given)] != given:
        return False
    try:
        values: list[Any] = [float(k) for k in given]
    except ValueError:
        values = [k.casefold() for k in given]
        return values[0] == (max(values) if descending else min(values))
    return values == sorted(values, reverse=descending)


def test_rows_are_filtered_by_budget(usual: Path, open_page: Any):
    page = open_page(usual)
    rows = page.locator("tbody tr:visible")
    assert rows.count() == 13  # the headline's budget and the un-accelerated row
    page.locator(".filter button").filter(has_text="All").click()
    assert rows.count() == 49


def test_the_frontier_tells_a_point_by_mouse_by_key_and_by_tap(usual: Path, open_page: Any):
    page = open_page(usual)
    details = page.locator(".details")
    point = page.locator("[data-axis=passes] .point").nth(6)
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert "of 50 full passes" in details.inner_text()
    assert "95\u00a0% interval" in details.inner_text()
    assert page.locator(".plot .ring:visible").count() == 2  # in both plots
    page.mouse.move(5, 5)
    assert "Point at a mark" in details.inner_text()
    first = page.locator("[data-axis=speedup] .point").first
    first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    name = details.locator("b").inner_text()
    assert name
    details.locator("button").click()
    short = name.split(" (")[0]
    assert short in [t.strip() for t in page.locator(".screens figcaption b").all_inner_texts()]


def test_other_metrics_and_single_methods_in_the_frontier(usual: Path, open_page: Any):
    page = open_page(usual)
    page.locator(".frontier .metric").select_option("lpips")
    assert "LPIPS" in page.locator("[data-axis=passes] .name").first.text_content()
    page.locator(".families .chip").first.click()
    assert page.locator("[data-axis=passes] g.dim").count() == 11


def test_curves_follow_the_players_frame_and_lead_it(usual: Path, open_page: Any):
    page = open_page(usual)
    page.wait_for_function(READY)
    plot = page.locator("[data-curve=framePsnr] svg")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    frame = at_frame(page)
    assert 0 < frame < FRAMES - 1
    readout = page.locator(".curves .readout").first.inner_text()
    assert readout.startswith(f"frame {frame + 1}")
    assert readout.count(" dB") == 3
    before = page.locator("[data-curve=framePsnr] .now").get_attribute("x1")
    page.locator(".scrub").fill("1")
    assert page.locator("[data-curve=framePsnr] .now").get_attribute("x1") != before


def test_diagnostics_of_other_budgets_unfold_and_maps_show_a_step(usual: Path, open_page: Any):
    page = open_page(usual)
    opened = page.locator(".diagnostics details[open] summary")
    assert opened.all_inner_texts() == ["2.5x"]
    page.locator(".map").first.scroll_into_view_if_needed()
    page.locator(".map .at").first.filter(has_text="step").wait_for()
    label = page.locator(".map canvas").first.get_attribute("aria-label")
    page.locator(".map .step").first.fill("1")
    assert page.locator(".map .at").first.inner_text() == "step 5"
    assert page.locator(".map canvas").first.get_attribute("aria-label") != label
    page.locator(".diagnostics summary").last.click()
    page.locator(".diagnostics details").last.locator(".plot svg").first.wait_for()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["usual", "hostile"])
def test_a_phone_scrolls_the_table_but_never_the_page(name: str, dark: bool, open_page: Any, request: Any):
    page = open_page(request.getfixturevalue(name), width=390, height=844, dark=dark)
    page.wait_for_function(READY)
    assert overflow(page) == 0
    scroller = "() => { const s = document.querySelector('.scroller'); return s.scrollWidth > s.clientWidth; }"
    assert page.evaluate(scroller)
    page.click(".compare")
    assert overflow(page) == 0
    assert min(page.evaluate(BUTTONS)) >= 28  # to be hit with a thumb


def test_the_plots_take_a_new_width(usual: Path, open_page: Any):
    page = open_page(usual)
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_function("() => document.querySelector('[data-axis=passes] svg').clientWidth < 400")
    assert overflow(page) == 0


def test_hostile_text_is_shown_and_never_run(hostile: Path, open_page: Any):
    page = open_page(hostile)
    asked = []
    page.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
    page.wait_for_function(READY)
    assert asked == []
    assert NASTY in page.title()
    assert NASTY in page.locator(".verdict").inner_text()


def test_a_page_without_clips_or_figures_has_no_script_error(folder: Path, open_page: Any):
    nothing = Comparison(title="nothing", command="c", versions={}, device="cpu", settings={})
    page = open_page(written(folder, "nothing", nothing))
    assert "Nothing is ranked" in page.inner_text("h1")
    assert overflow(page) == 0


def test_clips_without_videos_still_have_curves(folder: Path, open_page: Any):
    page = open_page(written(folder, "curves", make_comparison([None], methods=("tap-paper", "tap-reuse"))))
    assert page.locator(".player").is_hidden()
    assert page.locator("[data-curve=stepError] path.strong").count() == 2
    assert "not in this page" in page.inner_text(".missing")


def test_a_video_that_no_browser_plays_does_not_stop_the_others(folder: Path, open_page: Any):
    data = (folder / "0.mp4").read_bytes()
    (folder / "broken.mp4").write_bytes(data[:40] + b"\0" * 400)
    found = make_comparison(["0.mp4"], methods=("tap-paper", "tap-reuse"))
    for clip in found.clips:
        clip.video = "broken.mp4" if clip.method == "tap-reuse" else clip.video
    page = open_page(written(folder, "broken", found))
    page.wait_for_function("() => document.querySelector('.screens').innerText.includes('cannot play')")
    page.locator(".scrub").fill("0")
    page.click(".player .play")
    page.wait_for_function(f"() => document.querySelector('.screens video').currentTime > {2 * FRAME}")


def test_it_plays_by_itself_where_motion_is_welcome(usual: Path, open_page: Any):
    page = open_page(usual, calm=False)
    page.locator(".player").scroll_into_view_if_needed()
    page.wait_for_function("() => document.querySelector('.screens video').currentTime > 0.3")
