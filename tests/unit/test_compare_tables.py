"""From clips to rows, differences, csv and the console's table."""

import csv
import json
from dataclasses import replace

import pytest

from tapvideo.compare.results import ClipResult, Comparison
from tapvideo.compare.tables import differences, render, save, summarise


def clip(method, prompt="p", seed=1, psnr=30.0, **more):
    values = {
        "budget": 2.0, "status": "ok", "full_passes": 25.0, "denoise_seconds": 2.0, "speedup": 1.5,
        "metrics": {"psnr": psnr, "flip": 0.1},
    }  # fmt: skip
    return ClipResult(method=method, prompt=prompt, seed=seed, **values | more)


def comparison(clips):
    rows = [summarise(m, f"label of {m}", 2.0, [c for c in clips if c.method == m], "") for m in ("tap-paper", "peer")]
    found = Comparison(title="t", command="c", versions={}, device="d", settings={}, clips=clips, table=rows)
    found.differences = differences(clips, ["peer"], 2.0)
    return found


def test_row_has_means_worst_and_total_speedup():
    clips = [
        clip("m", "a", psnr=20.0, denoise_seconds=1.0, speedup=4.0),
        clip("m", "b", psnr=40.0, denoise_seconds=3.0),
    ]
    clips[1].metrics["flip"] = 0.4
    row = summarise("m", "M", 2.0, [*clips, clip("m", "c", status="failed", metrics={}, note="why")], "")
    assert (row.num_clips, row.num_failed, row.note) == (2, 1, "why")
    assert row.mean == {"psnr": pytest.approx(30.0), "flip": pytest.approx(0.25)}
    assert row.worst == {"psnr": 20.0, "flip": 0.4}  # low is bad for one, high for the other
    assert row.speedup == pytest.approx((1.0 * 4.0 + 3.0 * 1.5) / 4.0)
    assert row.low["psnr"] <= 30.0 <= row.high["psnr"]


def test_mean_over_some_clips_is_none():
    row = summarise("m", "M", None, [clip("m", "a", psnr=None), clip("m", "b", psnr=30.0)], "")
    assert row.mean["psnr"] is None
    assert row.worst["psnr"] == 30.0


def test_differences_are_paired_by_prompt_and_seed():
    ours = [clip("tap-paper", p, psnr=v) for p, v in (("a", 30.0), ("b", 20.0), ("c", 10.0))]
    theirs = [clip("peer", p, psnr=v) for p, v in (("b", 18.0), ("a", 29.0))]
    (psnr, _) = differences([*ours, *theirs], ["peer"], 2.0)
    assert (psnr.metric, psnr.num_clips, psnr.mean) == ("psnr", 2, pytest.approx(1.5))
    assert 1.0 <= psnr.low <= psnr.high <= 2.0
    assert differences([*ours, *theirs], ["peer"], 3.0) == []


def test_clips_that_are_behind_are_counted_and_told():
    ours = [clip("tap-paper", p, psnr=v) for p, v in (("a", 30.0), ("b", 20.0), ("c", 10.0))]
    theirs = [clip("peer", p, psnr=v) for p, v in (("a", 30.4), ("b", 20.6), ("c", 5.0))]
    found = comparison([*ours, *theirs])
    assert {d.metric: d.behind for d in found.differences} == {"psnr": 1, "flip": None}
    assert "], over 0.5 dB behind on 1 of 3 clips" in render(found, {2.0: 25.0}, 0.05)
    assert "dB behind" not in render(comparison([*ours, clip("peer", psnr=5.0)]), {2.0: 25.0}, 0.05)


def test_the_default_speaks_for_us_and_the_paper_where_it_was_not_run():
    clips = [clip(m, p, psnr=v) for m, v in (("tap-paper", 20.0), ("peer", 25.0), ("tap-default", 30.0)) for p in "ab"]
    found = differences(clips, ["tap-default", "tap-paper", "peer"], 2.0)
    assert {(d.method, d.rival): d.mean for d in found if d.metric == "psnr"} == {
        ("tap-default", "tap-paper"): 10.0, ("tap-default", "peer"): 5.0,
    }  # fmt: skip
    (psnr, _) = differences(clips[:4], ["peer"], 2.0)
    assert (psnr.method, psnr.mean) == ("tap-paper", -5.0)


def test_one_prompt_gives_no_interval_and_no_difference():
    assert differences([clip("tap-paper"), clip("peer")], ["peer"], 2.0) == []


def test_files_hold_every_clip(tmp_path):
    clips = [clip("tap-paper", "a, with comma"), clip("peer", status="not_run", metrics={}, note="why\nnot")]
    save(tmp_path, comparison(clips))
    assert len(json.loads((tmp_path / "results.json").read_text())["clips"]) == 2
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["prompt"] == "a, with comma"
    assert rows[0]["psnr"] == "30.0"
    assert (rows[1]["status"], rows[1]["note"], rows[1]["psnr"]) == ("not_run", "why\nnot", "")


def test_console_puts_what_is_not_at_equal_compute_last():
    clips = [clip("tap-paper", p, psnr=30.0) for p in "ab"] + [
        clip("peer", p, psnr=50.0, full_passes=45.0) for p in "ab"
    ]
    text = render(comparison(clips), {2.0: 25.0}, 0.05)
    assert text.index("label of tap-paper") < text.index("label of peer")
    assert "not at equal compute" in text
    assert "-20.00 dB" in text
    fair = [replace(c, full_passes=25.0) for c in clips]
    text = render(comparison(fair), {2.0: 25.0}, 0.05)
    assert text.index("label of peer") < text.index("label of tap-paper")
    assert "not at equal compute" not in text


def test_console_says_why_a_method_was_not_run():
    clips = [clip("tap-paper"), clip("peer", status="not_run", metrics={}, full_passes=None, note="no such package")]
    assert "no such package" in render(comparison(clips), {2.0: 25.0}, 0.05)
