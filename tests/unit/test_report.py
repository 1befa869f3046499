"""The report: what it takes from a trace, and a page that is whole, safe and needs no network."""

import base64
import json
import math
import re
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from tapvideo.report import ChoiceMap, Clip, Report, Step, render_report, steps_and_maps, write_report
from tapvideo.report.palette import RECOMPUTED, palette
from tapvideo.schedule import StepKind
from tapvideo.stack import RECOMPUTED as STACK_RECOMPUTED
from tapvideo.trace import StepRecord, Stopwatch, Trace
from tapvideo.video_io import write_mp4

NASTY = """<script>alert(1)</script></script><img src=x onerror=alert(2)> "quoted" 'single' & {{ 7 * 7 }} <!--"""
LABELS = ("reuse", "order 1, k", "order 1, k-1", "order 2, k")
FULL, FORECAST = StepKind.FULL, StepKind.FORECAST


class Page(HTMLParser):
    """Every tag with its attributes, the text outside scripts, and each script's and style's text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag in self.raw:
            self.raw[tag].append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem in self.raw:
            self.raw[self.cdata_elem][-1] += data
        else:
            self.text += data

    def all(self, tag: str, css_class: str = "") -> list[dict[str, str]]:
        return [a for t, a in self.tags if t == tag and (not css_class or css_class in a.get("class", "").split())]

    @property
    def payload(self) -> dict:
        return json.loads(self.raw["script"][0])


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("videos")
    for name, value in (("tap.mp4", 0.3), ("full.mp4", 0.6)):
        write_mp4(folder / name, torch.full((5, 16, 16, 3), value), fps=8, crf=16)
    return folder / "tap.mp4", folder / "full.mp4"


@pytest.fixture
def clip(videos: tuple[Path, Path]) -> Clip:
    choice = torch.arange(12, dtype=torch.int8).reshape(2, 2, 3) % 4
    steps = [
        Step(0, FULL, 1.0, 0.5, {}),
        Step(1, FORECAST, 0.75, 0.005, {"reuse": 0.25, "order 1, k": 0.746, "order 2, k": 0.004}),
        Step(2, FORECAST, None, 0.004, {"reuse": 1.0}),
    ]
    maps = [ChoiceMap(step, branch, LABELS, choice) for step in (1, 2) for branch in ("cond", "uncond")]
    return Clip("a red circle", 7, videos[0], videos[1], 31.25, 0.9812, 2.0, 6.0, steps, maps)


def _page(*clips: Clip, title: str = "a title", command: str = "python launch/generate.py", **facts: str) -> Page:
    return Page(render_report(Report(title, command, facts, list(clips))))


def _headlines(page: Page) -> list[str]:
    words = page.text.split("a title")[-1]
    return [
        line for line in ("Speedup", "Denoising", "PSNR", "SSIM", "Steps computed") if line in words.split("seed")[0]
    ]


def _watch(seconds: float) -> Stopwatch:
    return Stopwatch(torch.device("cpu"), _start=0.0, _stop=seconds)


def _trace() -> Trace:
    def record(branch: str, step: int, kind: StepKind, seconds: float, **kwargs) -> StepRecord:
        return StepRecord(branch, step, 2, kind, 1 - step / 2, _watch(seconds), **kwargs)

    choice = torch.stack([torch.zeros(8, dtype=torch.int8), torch.arange(8, dtype=torch.int8) % 2])
    chosen = {"labels": LABELS[:2], "choice": choice, "shares": torch.tensor([0.75, 0.25])}
    records = [record(b, 0, FULL, 0.5, overhead=(_watch(0.1), _watch(0.1))) for b in ("cond", "uncond")]
    records += [record(b, 1, FORECAST, 0.01, **chosen) for b in ("cond", "uncond")]
    return Trace(records, grid=(2, 2, 2))


def test_steps_of_a_trace_sum_the_branches():
    steps, _ = steps_and_maps(_trace())
    assert steps == [Step(0, FULL, 1.0, 1.0, {}), Step(1, FORECAST, 0.5, 0.02, {"reuse": 0.75, "order 1, k": 0.25})]


def test_maps_of_a_trace_are_those_of_one_row_of_the_batch():
    _, maps = steps_and_maps(_trace(), row=1)
    assert [(m.step, m.branch, m.labels) for m in maps] == [(1, b, LABELS[:2]) for b in ("cond", "uncond")]
    assert torch.equal(maps[0].choice, (torch.arange(8, dtype=torch.int8) % 2).reshape(2, 2, 2))


def test_maps_refuse_a_row_or_a_grid_that_does_not_fit():
    with pytest.raises(ValueError, match="row=2 is not in a batch of 2"):
        steps_and_maps(_trace(), row=2)
    trace = _trace()
    trace.grid = (2, 2, 3)
    with pytest.raises(ValueError, match="8 choices on step 1 do not fill"):
        steps_and_maps(trace)


def test_a_trace_without_choices_has_no_maps():
    trace = _trace()
    for record in trace.records:
        record.choice = None
    assert steps_and_maps(trace)[1] == []
    assert steps_and_maps(Trace()) == ([], [])


def test_every_video_is_inside_the_page(clip: Clip):
    page = _page(clip, replace(clip, seed=8, baseline=None, baseline_denoise_seconds=None))
    embedded = [base64.b64decode(v["src"].removeprefix("data:video/mp4;base64,")) for v in page.all("video")]
    full, tap = (p.read_bytes() for p in (clip.baseline, clip.video) if p is not None)
    assert embedded == [full, tap, tap]


def test_nothing_is_loaded_from_elsewhere(clip: Clip):
    page = _page(clip)
    for _, attributes in page.tags:
        for name in ("src", "href", "poster", "action", "data", "srcset"):
            assert re.match(r"data:|#|$", attributes.get(name, "")), attributes
        assert "url(" not in attributes.get("style", "")
    assert "default-src 'none'" in next(m["content"] for m in page.all("meta") if "http-equiv" in m)
    for text in page.raw["style"] + page.raw["script"]:
        assert not re.search(r"https?:|//\w|url\(|@import|\bfetch\(|\bimport\b|XMLHttpRequest", text)


def test_text_from_users_is_only_ever_text(clip: Clip):
    maps = [replace(m, branch=NASTY) for m in clip.maps[::2]]
    page = _page(replace(clip, prompt=NASTY, maps=maps), title=NASTY, command=NASTY, fact=NASTY, block=NASTY + "\n")
    plain = _page(replace(clip, maps=clip.maps[::2]), title="x", command="x", fact="x", block="x\n")
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert page.text.count(NASTY) == 6  # title twice, prompt, command, two facts
    assert list(page.payload["maps"][0]) == [NASTY]
    assert len(page.raw["script"]) == 2


def test_maps_in_the_page_are_the_tokens_choices(clip: Clip):
    payload = _page(clip).payload
    packed = payload["maps"][0]["uncond"]
    assert packed["steps"] == [1, 2]
    assert packed["grid"] == [2, 2, 3]
    raw = zlib.decompress(base64.b64decode(packed["data"]))
    assert [payload["labels"][i] for i in raw] == [LABELS[i % 4] for i in range(12)] * 2
    assert len(payload["colours"]) == len(payload["labels"]) == 4


def test_maps_with_other_candidates_on_other_steps_share_the_pages_labels(clip: Clip):
    early = replace(clip.maps[0], labels=("order 1, k", "reuse"), choice=clip.maps[0].choice % 2)
    payload = _page(replace(clip, maps=[early, clip.maps[2]])).payload
    raw = zlib.decompress(base64.b64decode(payload["maps"][0]["cond"]["data"]))
    assert [payload["labels"][i] for i in raw[:2]] == ["order 1, k", "reuse"]
    assert [payload["labels"][i] for i in raw[12:16]] == list(LABELS)


def test_maps_of_one_branch_must_be_of_one_size(clip: Clip):
    odd = replace(clip.maps[0], choice=clip.maps[0].choice[:1])
    with pytest.raises(ValueError, match="branch 'cond' differ in size"):
        _page(replace(clip, maps=[*clip.maps, odd]))


def test_the_timeline_tells_every_step(clip: Clip):
    columns = [b for b in _page(clip).all("button") if "data-step" in b]
    assert [b["class"] for b in columns] == ["full", "forecast", "forecast"]
    facts, shares = columns[1]["aria-label"].split("\n")
    assert facts == "step 1 \u00b7 forecast \u00b7 \u03c3 0.750 \u00b7 5 ms"
    assert shares == "order 1, k 75\u00a0% \u00b7 reuse 25\u00a0%"  # below half a percent is left out
    assert columns[2]["aria-label"].startswith("step 2 \u00b7 forecast \u00b7 4 ms")
    assert "--stack" not in columns[0]["style"]
    colours = palette(LABELS)
    assert f"{colours['reuse']} 0.00% 25.00%, {colours['order 1, k']} 25.00% 99.60%" in columns[1]["style"]


def test_headlines_are_the_runs_numbers(clip: Clip):
    page = _page(clip)
    for text in ("3.00", "6.0 s \u2192 2.0 s", "31.2", "0.9812", "of 3"):
        assert text in page.text
    assert _headlines(page) == ["Speedup", "PSNR", "SSIM", "Steps computed"]


@pytest.mark.parametrize(("seconds", "unsure"), [(6.0, False), (6.5, False), (6.7, True)])
def test_a_speedup_that_skipped_steps_do_not_explain_is_doubted(clip: Clip, seconds: float, unsure: bool):
    page = _page(replace(clip, baseline_denoise_seconds=seconds))  # 2 s and 1 of 3 steps: 3x at most
    assert ("more than 3 / 1 steps explain" in page.text) is unsure


def test_equal_clips_are_called_identical(clip: Clip):
    page = _page(replace(clip, psnr=math.inf, ssim=1.0))
    assert "\u221e" in page.text
    assert "identical" in page.text
    mixed = _page(clip, replace(clip, psnr=math.inf))
    assert "1 more identical" in mixed.text


def test_without_a_baseline_there_is_one_video_and_no_speedup(clip: Clip):
    page = _page(replace(clip, baseline=None, baseline_denoise_seconds=None, psnr=None, ssim=None))
    assert len(page.all("video")) == 1
    assert _headlines(page) == ["Denoising", "Steps computed"]
    assert not page.all("button", "compare")


def test_without_tap_there_are_no_steps_and_maps(clip: Clip):
    off = replace(clip, baseline=None, baseline_denoise_seconds=None, psnr=None, ssim=None, steps=[], maps=[])
    page = _page(off)
    assert len(page.all("video")) == 1
    assert _headlines(page) == ["Denoising"]
    for name in ("steps", "predictors"):
        assert not page.all("section", name)


def test_without_maps_the_shares_remain(clip: Clip):
    page = _page(replace(clip, maps=[]))
    assert page.all("section", "predictors")
    assert not page.all("div", "maps")


def test_several_clips_are_listed_and_numbered(clip: Clip):
    page = _page(clip, replace(clip, prompt="a blue star", seed=8))
    assert [a["href"] for a in page.all("a")] == ["#clip-1", "#clip-2"]
    assert [a["id"] for a in page.all("article")] == ["clip-1", "clip-2"]


def test_every_control_has_a_name(clip: Clip):
    page = _page(clip)
    for tag in ("input", "video"):
        assert all(a.get("aria-label") for a in page.all(tag))
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_a_report_needs_clips_and_their_videos(clip: Clip, tmp_path: Path):
    with pytest.raises(ValueError, match="at least one clip"):
        _page()
    with pytest.raises(FileNotFoundError, match=r"absent\.mp4"):
        write_report(tmp_path / "report.html", Report("", "", {}, [replace(clip, video=tmp_path / "absent.mp4")]))
    assert not list(tmp_path.iterdir())


def test_write_report_writes_the_page(clip: Clip, tmp_path: Path):
    report = Report("a title", "", {}, [clip])
    write_report(tmp_path / "report.html", report)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render_report(report)


def test_palette_gives_orders_hues_and_distances_lightness():
    labels = ["order 2, k", "order 1, k-1.5", "order 1, k-10", "order 1, k", "reuse"]
    colours = palette(labels)
    assert list(colours) == ["reuse", "order 1, k", "order 1, k-1.5", "order 1, k-10", "order 2, k"]
    assert len(set(colours.values())) == 5
    blues = [sum(bytes.fromhex(colours[label][1:])) for label in list(colours)[1:4]]
    assert blues == sorted(blues)


def test_recomputed_tokens_have_a_colour_of_their_own():
    colours = palette(["recomputed", "reuse", "order 1, k", "order 2, k"])
    assert list(colours)[-1] == "recomputed"
    assert len(set(colours.values())) == 4
    assert RECOMPUTED == STACK_RECOMPUTED
