"""The comparison's page: whole, safe, and no figure in it that the results do not have."""

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import comparison_sample as sample
import pytest
from comparison_sample import NASTY, REFERENCE, make_comparison
from PIL import Image

from tapvideo.compare.results import Comparison
from tapvideo.report.compare import render_comparison, write_comparison_report

PNG = b"\x89PNG\r\n"


class Page(HTMLParser):
    """Tags with attributes, the visible text, and what scripts and styles hold."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.scripts: list[tuple[dict[str, str], str]] = []
        self.styles = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {k: v or "" for k, v in attrs}))
        if tag == "script":
            self.scripts.append((self.tags[-1][1], ""))

    def handle_data(self, data):
        if self.cdata_elem == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self.cdata_elem == "style":
            self.styles += data
        else:
            self.text += data

    def all(self, tag: str, css_class: str = "") -> list[dict[str, str]]:
        return [a for t, a in self.tags if t == tag and (not css_class or css_class in a.get("class", "").split())]

    @property
    def payload(self) -> dict:
        return json.loads(next(text for a, text in self.scripts if a.get("id") == "payload"))

    @property
    def videos(self) -> list[str]:
        return [text for a, text in self.scripts if a.get("id", "").startswith("video-")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("comparison")
    sample.write_square(path / "full.mp4", size=32)
    sample.write_square(path / "tap.mp4", size=32, shift=1)
    return path


@pytest.fixture
def small() -> Comparison:
    """Three methods at two budgets, two clips each."""
    methods = ("tap-paper", "tap-taylor1", "steps-unipc")
    return make_comparison(["full.mp4", "tap.mp4"], methods=methods, budgets=(2.0, 2.5), seeds=(0, 1))


def page_of(folder: Path, comparison: Comparison, **limits: int) -> Page:
    return Page(render_comparison(folder, comparison, **limits))


def test_the_first_sentence_names_the_closest_method_and_taps_place(folder: Path, small: Comparison):
    text = page_of(folder, small).text.replace("\u2011", "-")
    row = next(r for r in small.table if r.method == "tap-taylor1" and r.budget == 2.5)
    best = f"TAP, taylor1 is closest to the un-accelerated video: {row.mean['psnr']:.2f}\u00a0dB PSNR"
    assert f"At 2.5\u00d7 (20 of 50 full passes), {best} on average over 2 clips." in text
    assert "TAP, paper is 2nd of 3, 0.72\u00a0dB behind (95\u00a0% interval 0.31 to 1.10)." in text


def test_every_row_has_every_figure_of_the_table(folder: Path, small: Comparison):
    page = page_of(folder, small)
    (table,) = page.all("table")
    assert table is not None
    assert len([a for t, a in page.tags if t == "tr" and "data-budget" in a]) == len(small.table) == 7
    for row in small.table:
        for figures in (row.mean, row.low, row.high):
            for key, value in figures.items():
                digits = 2 if key.startswith("psnr") else 4
                assert value is None or f"{value:.{digits}f}" in page.text, (row.method, key)
    sorts = [a["data-sort"] for t, a in page.tags if t == "td"]
    assert "Infinity" in sorts  # of the un-accelerated row: identical
    assert all(text in ("", "Infinity") or math.isfinite(float(text)) for text in sorts)


def test_videos_and_curves_are_inside_the_page(folder: Path, small: Comparison):
    page = page_of(folder, small)
    assert len(page.videos) == 2  # each file once, however many clips name it
    clips = page.payload["clips"]
    assert len(clips) == len(small.clips)
    assert [c["video"] for c in clips if c["budget"] is None] == [0, 0]
    assert clips[2]["framePsnr"] == pytest.approx(small.clips[2].frame_psnr, rel=1e-4)
    assert clips[2]["stepError"][:3] == [None] * 3
    pair = page.payload["pairs"][1]
    assert (pair["seed"], pair["frames"], pair["fps"], pair["width"]) == (1, sample.FRAMES, sample.FPS, 32)


def test_nothing_is_loaded_from_elsewhere(folder: Path, small: Comparison):
    page = page_of(folder, small)
    for _, attributes in page.tags:
        for name in ("src", "href", "poster", "action", "data", "srcset"):
            assert re.match(r"data:|#|$", attributes.get(name, "")), attributes
        assert "url(" not in attributes.get("style", "")
    assert "default-src 'none'" in next(m["content"] for m in page.all("meta") if "http-equiv" in m)
    code = page.scripts[-1][1].replace("http://www.w3.org/2000/svg", "")
    for text in (page.styles, code):
        assert not re.search(r"https?:|//\w|url\(|@import|\bfetch\(|\bimport\b|XMLHttpRequest|innerHTML|eval\(", text)


def test_text_from_users_is_only_ever_text(folder: Path, small: Comparison):
    def with_text(text: str) -> Comparison:
        rows = [replace(r, note=text, label=text if r.budget == 2.0 else r.label) for r in small.table]
        clips = [
            replace(c, prompt=text, note=text, not_computed={text: text}, settings={text: text}) for c in small.clips
        ]
        failed = [replace(c, status=s, note=text) for c, s in zip(clips[-2:], ("failed", "not_run"), strict=True)]
        told = {"verdict": text, text: 1.0, "a": {text: [1, 2, 3]}, "b": [{text: 1.0}, {text: 2.0}], "c": text}
        return replace(
            small, title=text, command=text, device=text, versions={text: text}, settings={text: [text]}, table=rows,
            clips=[*clips[:-2], *failed], diagnostics=told,
        )  # fmt: skip

    page, plain = page_of(folder, with_text(NASTY)), page_of(folder, with_text("x"))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert len(page.scripts) == len(plain.scripts)
    assert page.text.count(NASTY) > 20
    assert page.payload["pairs"][0]["prompt"] == NASTY


def test_a_hostile_title_and_label_do_not_break_the_plot(tmp_path: Path, folder: Path, small: Comparison):
    rows = [replace(r, label=f"_{NASTY}" if r.method == "tap-paper" else "$x_") for r in small.table]
    page = write_comparison_report(tmp_path, replace(small, title=NASTY, table=rows))
    assert page == tmp_path / "report.html"
    assert (tmp_path / "frontier.png").read_bytes().startswith(PNG)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["frontier.png", "report.html"]


def test_missing_metrics_are_dashes_and_their_reason_is_said(folder: Path, small: Comparison):
    for clip in small.clips[2:]:
        clip.metrics["vmaf"], clip.not_computed["vmaf"] = None, "put vmaf.json at X"
    for row in small.table:
        row.mean["vmaf"] = None
    page = page_of(folder, small)
    assert "put vmaf.json at X" in page.text
    assert page.text.count("put vmaf.json at X") == 1  # said once, not per clip
    assert "infinite: identical" not in page.text  # of the un-accelerated clip to itself: nothing is amiss


def test_no_metric_at_all(tmp_path: Path, small: Comparison):
    empty = {"mean": {}, "low": {}, "high": {}, "worst": {}}
    bare = replace(
        small,
        table=[replace(r, **empty, full_passes=None, speedup=None) for r in small.table],
        clips=[replace(c, metrics={}, frame_psnr=[], step_error=[]) for c in small.clips],
        differences=[],
    )
    page = Page(write_comparison_report(tmp_path, bare).read_text(encoding="utf-8"))
    assert "Nothing is ranked" in page.text
    assert not page.all("section", "frontier")
    assert page.payload["best"] is None
    assert (tmp_path / "frontier.png").read_bytes().startswith(PNG)


def test_no_clips_at_all(tmp_path: Path):
    nothing = Comparison(title="t", command="c", versions={}, device="cpu", settings={})
    page = Page(write_comparison_report(tmp_path, nothing).read_text(encoding="utf-8"))
    assert "Nothing is ranked" in page.text
    assert "There are no rows" in page.text
    assert not page.all("section", "clips")
    assert (tmp_path / "frontier.png").read_bytes().startswith(PNG)


def test_one_clip(tmp_path: Path, folder: Path, small: Comparison):
    one = replace(small, clips=small.clips[2:3], table=small.table[1:2], differences=[])
    page = Page(render_comparison(folder, one))
    assert "on average over 2 clips" in page.text  # as the table says
    assert len(page.videos) == 1
    write_comparison_report(tmp_path, one)


def test_values_that_are_no_numbers_keep_the_page_whole(folder: Path, small: Comparison):
    small.table[1].mean["psnr"] = math.nan
    small.table[2].mean["psnr"] = math.inf
    small.clips[2].metrics["psnr"] = math.inf
    page = page_of(folder, replace(small, diagnostics={"a": [1.0, math.nan], "b": math.inf}))
    assert "NaN" not in page.scripts[-1][0].get("id", "")
    assert page.payload["rows"][2]["mean"]["psnr"] is None
    assert "\u221e" in page.text


def test_twelve_methods_at_four_budgets(tmp_path: Path, folder: Path):
    many = make_comparison(["full.mp4", "tap.mp4"], seeds=(0, 1, 2))
    page = page_of(folder, many)
    assert len(page.payload["rows"]) == 1 + 12 * 4
    assert len({(m["mark"], a) for m, a in zip(page.payload["methods"], _colours(page), strict=True)}) == 13
    write_comparison_report(tmp_path, many)
    assert (tmp_path / "frontier.png").stat().st_size > 50_000


def test_a_frontier_of_many_methods_has_room_for_all_their_names(tmp_path: Path, small: Comparison):
    (row,) = (r for r in small.table if (r.method, r.budget) == ("tap-paper", 2.0))
    rows = [replace(row, method=f"tap-{i}", label=f"TAP, {i}") for i in range(40)]
    for name, found in (("few", small), ("many", replace(small, table=[*small.table, *rows]))):
        (tmp_path / name).mkdir()
        write_comparison_report(tmp_path / name, found)
    (width, few), (same, many) = (Image.open(tmp_path / name / "frontier.png").size for name in ("few", "many"))
    assert (width, few) == (same, 840)
    assert many > 40 * 0.2 * 150  # inches a line, dots an inch


def _colours(page: Page) -> list[str]:
    light = page.styles[page.styles.index("--m0") :].splitlines()[0]
    return re.findall(r"--m\d+: (#[0-9a-f]{6})", light)


def test_videos_beyond_the_limit_are_left_out_and_counted(folder: Path, small: Comparison):
    page = page_of(folder, small, max_videos=1)
    assert len(page.videos) == 1
    assert "1 of 2 videos are not in this page" in page.text
    assert len(page_of(folder, small, max_bytes=10).videos) == 0
    assert "not in this page" not in page_of(folder, small).text


def test_the_limit_leaves_out_whole_groups(tmp_path: Path, folder: Path):
    data = (folder / "tap.mp4").read_bytes()
    methods = ("tap-paper", "steps-unipc")
    comparison = make_comparison(["x.mp4"], methods=methods, budgets=(2.0, 2.5), seeds=(0, 1))
    for i, clip in enumerate(comparison.clips):
        clip.video = f"{i}.mp4"
        (tmp_path / f"{i}.mp4").write_bytes(data)
    clips = page_of(tmp_path, comparison, max_videos=7).payload["clips"]
    kept = {(c["pair"], c["budget"]) for c in clips if c["video"] is not None}
    assert kept == {(0, None), (0, 2.5), (1, None), (1, 2.5)}  # the headline's budget of both clips, then no room


@pytest.mark.parametrize("path", ["../secret.mp4", "/etc/hostname", "absent.mp4", "text.mp4", "a\0b.mp4"])
def test_only_videos_inside_the_folder_get_into_the_page(tmp_path: Path, folder: Path, small: Comparison, path: str):
    inside = tmp_path / "results"
    inside.mkdir()
    (tmp_path / "secret.mp4").write_bytes((folder / "tap.mp4").read_bytes())
    (inside / "text.mp4").write_text("no video")
    page = page_of(inside, replace(small, clips=[replace(c, video=path) for c in small.clips]))
    assert page.videos == []
    assert "1 video could not be read" in page.text


def test_not_run_and_failed_methods_are_listed_with_their_notes(folder: Path, small: Comparison):
    absent = replace(small.clips[-1], method="diffusers-pab", status="not_run", note="needs X", video=None)
    broken = replace(small.clips[-1], method="tap-paper", status="failed", note="out of memory", video=None)
    page = page_of(folder, replace(small, clips=[*small.clips, absent, replace(absent, budget=2.0), broken]))
    listed = page.text[page.text.index("What is missing") :]
    assert "diffusers-pab" in listed
    assert "2.5\u00d7; 2\u00d7" in listed
    assert listed.count("needs X") == 1
    assert "out of memory" in listed


def test_command_versions_device_and_settings_are_there(folder: Path, small: Comparison):
    text = page_of(folder, small).text
    for part in (small.command, small.device, "2.13.0", "cache-dit", '"budgets"'):
        assert part in text


def test_the_unaccelerated_clip_is_the_reference_that_no_metric_names(folder: Path, small: Comparison):
    other = [replace(c, method="ode", speedup=0.5) for c in small.clips if c.method == REFERENCE]
    row = replace(small.table[0], method="ode", label="100 UniPC steps")
    page = page_of(folder, replace(small, clips=[*other, *small.clips], table=[row, *small.table]))
    methods = page.payload["methods"]
    assert [(m["short"], m["reference"]) for m in methods[:3]] == [
        ("Un-accelerated, 50 UniPC steps", True), ("100 UniPC steps", True), ("Fewer steps, UniPC", False),
    ]  # fmt: skip
    assert "PSNR to 100 UniPC steps" in page.text
