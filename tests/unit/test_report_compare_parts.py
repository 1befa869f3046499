"""Parts of the comparison's page: the order of methods, the shapes of diagnostics, the names of metrics."""

import base64
import json
import math
import zlib
from dataclasses import replace

import pytest
import torch

from tapvideo.compare.results import ClipResult, Comparison, MethodSummary, PairedDifference
from tapvideo.report import compare_frontier
from tapvideo.report.compare_answer import answer, chosen, place, standings
from tapvideo.report.compare_diagnostics import Block, diagnostic_groups
from tapvideo.report.compare_maps import maps_record, read_maps
from tapvideo.report.compare_methods import list_methods, reference_keys
from tapvideo.report.compare_metrics import Metric, metric, metrics_of, number, primary
from tapvideo.report.compare_table import rows
from tapvideo.report.data import ChoiceMap
from tapvideo.report.palette import palette

PSNR, LPIPS, FLICKER = metric("psnr"), metric("lpips"), metric("flicker")


def diagnostic_blocks(raw: dict) -> list[Block]:
    return [block for group in diagnostic_groups(raw) for block in group.blocks]


def row(method: str, budget: float | None, passes: float | None = None, **means: float | None) -> MethodSummary:
    return MethodSummary(
        method=method, label=method.upper(), budget=budget, num_clips=4, num_failed=0, full_passes=passes,
        speedup=None, mean=means, low={}, high={}, worst={},
    )  # fmt: skip


def comparison(*table: MethodSummary, **parts) -> Comparison:
    reference = row("full", None, 50.0)
    settings = parts.pop("settings", {})
    return Comparison(
        title="", command="", versions={}, device="", settings=settings, table=[reference, *table], **parts
    )


def difference(method: str, rival: str, mean: float, low: float, high: float, metric: str = "psnr") -> PairedDifference:
    return PairedDifference(
        method=method, rival=rival, budget=2.0, metric=metric, mean=mean, low=low, high=high, num_clips=4
    )


def sentence(found: Comparison, metric: Metric = PSNR) -> str:
    return answer(chosen(standings(found, metric)), metric, 50.0).replace("\u00a0", " ")


def test_draws_are_told_apart_from_clips():
    found = comparison(row("a", 2.0, psnr=30.0), row("b", 2.0, psnr=31.0))
    standing = chosen(standings(found, PSNR))
    assert "on average over 4 clips." in answer(standing, PSNR, 50.0).replace("\u00a0", " ")
    assert "on average over 2 clips, 2 draws each" in answer(standing, PSNR, 50.0, 2)
    assert "over 4 clips" in answer(standing, PSNR, 50.0, 3)  # some are missing


def test_the_best_is_the_highest_psnr_and_the_lowest_lpips():
    found = comparison(row("a", 2.0, psnr=30.0, lpips=0.1), row("b", 2.0, psnr=31.0, lpips=0.2))
    assert [r.method for r in standings(found, PSNR)[0].ranked] == ["b", "a"]
    assert [r.method for r in standings(found, LPIPS)[0].ranked] == ["a", "b"]


def test_flicker_is_best_nearest_zero():
    found = comparison(row("a", 2.0, flicker=-0.3), row("b", 2.0, flicker=0.1), row("c", 2.0, flicker=0.2))
    assert [r.method for r in standings(found, FLICKER)[0].ranked] == ["b", "c", "a"]


def test_more_full_passes_than_the_budget_are_not_ranked():
    table = (row("greedy", 2.0, 26.3, psnr=40.0), row("fair", 2.0, 26.2, psnr=30.0), row("none", 2.0, 25.0, psnr=None))
    (standing,) = standings(comparison(*table), PSNR)
    assert [r.method for r in standing.ranked] == ["fair"]
    assert standing.num_unranked == 2
    (loose,) = standings(comparison(*table, settings={"tolerance": 0.1}), PSNR)
    assert [r.method for r in loose.ranked] == ["greedy", "fair"]


def test_infinite_is_best_and_nan_is_not_ranked():
    found = comparison(row("a", 2.0, psnr=math.inf), row("b", 2.0, psnr=math.nan), row("c", 2.0, psnr=50.0))
    assert [r.method for r in standings(found, PSNR)[0].ranked] == ["a", "c"]


def test_the_first_sentence_is_of_the_budget_nearest_to_two_and_a_half():
    found = comparison(*(row("a", b, psnr=30.0) for b in (5.0, 2.0, 3.5)))
    assert "At 2\u00d7 (25 of 50 full passes), A is closest" in sentence(found)


def test_tap_behind_with_the_interval_turned_to_the_side_that_is_named():
    found = comparison(row("x", 2.0, psnr=31.0), row("tap-paper", 2.0, psnr=30.0))
    assert sentence(found).endswith("TAP-PAPER is 2nd of 2, 1.00 dB behind.")
    found.differences = [difference("tap-paper", "x", -0.9, -1.5, -0.2)]
    assert sentence(found).endswith("TAP-PAPER is 2nd of 2, 0.90 dB behind (95 % interval 0.20 to 1.50).")
    found.differences = [difference("x", "tap-paper", 0.9, 0.2, 1.5)]  # the same, from the rival's side
    assert sentence(found).endswith("TAP-PAPER is 2nd of 2, 0.90 dB behind (95 % interval 0.20 to 1.50).")


def test_tap_ahead_names_the_second():
    found = comparison(row("x", 2.0, psnr=31.0), row("tap-paper", 2.0, psnr=32.0), row("y", 2.0, psnr=20.0))
    found.differences = [difference("tap-paper", "x", 1.0, 0.4, 1.6)]
    expected = "over 4 clips, 1.00 dB ahead of X (95 % interval 0.40 to 1.60)."
    assert sentence(found).endswith(expected)


def test_tap_ahead_is_set_against_others_and_not_against_its_own_parts():
    rows = [row(m, 2.0, psnr=v) for m, v in (("tap-paper", 31.0), ("tap-default", 32.0), ("y", 20.0))]
    assert sentence(comparison(*rows)).endswith("12.00 dB ahead of Y.")
    assert sentence(comparison(*rows[:2])).endswith("1.00 dB ahead of TAP-PAPER.")


def test_an_interval_across_zero_settles_nothing():
    found = comparison(row("x", 2.0, psnr=31.0), row("tap-paper", 2.0, psnr=30.0))
    found.differences = [difference("tap-paper", "x", -0.9, -2.0, 0.3)]
    assert "(95 % interval \u22120.30 to 2.00: these clips do not settle it)" in sentence(found)


def test_lower_is_better_turns_the_difference():
    found = comparison(row("x", 2.0, lpips=0.1), row("tap-paper", 2.0, lpips=0.2))
    found.differences = [difference("tap-paper", "x", 0.1, 0.05, 0.2, metric="lpips")]
    assert "0.1000 LPIPS behind (95 % interval 0.0500 to 0.2000)" in sentence(found, LPIPS)


def test_without_the_paper_preset_the_best_of_tap_stands_for_it():
    found = comparison(row("x", 2.0, psnr=31.0), row("tap-reuse", 2.0, psnr=29.0), row("tap-taylor1", 2.0, psnr=30.0))
    (standing,) = standings(found, PSNR)
    assert place(standing, PSNR).startswith("TAP-TAYLOR1 is 2nd of 3")


@pytest.mark.parametrize(("rank", "text"), [(11, "11th"), (12, "12th"), (13, "13th"), (21, "21st"), (22, "22nd")])
def test_ordinals(rank: int, text: str):
    better = [row(f"m{i}", 2.0, psnr=50.0 - i) for i in range(rank - 1)]
    (standing,) = standings(comparison(*better, row("tap-paper", 2.0, psnr=1.0)), PSNR)
    assert f"is {text} of {rank}" in place(standing, PSNR)


def test_without_tap_or_figures():
    assert "TAP" not in sentence(comparison(row("x", 2.0, psnr=31.0)))
    assert sentence(comparison(row("x", 2.0))) == "Nothing is ranked: no method has a figure at any budget."


def test_rows_are_ordered_by_budget_and_then_by_quality():
    found = comparison(
        row("c", 3.5, psnr=9.0), row("a", 2.0, psnr=1.0), row("b", 2.0, psnr=2.0), row("d", 2.0, psnr=None)
    )
    methods, metrics = list_methods(found), metrics_of(found)
    made = rows(found, methods, metrics, primary(metrics))
    assert [r.label for r in made] == ["FULL", "B", "A", "D", "C"]


def test_bars_share_the_columns_range():
    wide = replace(row("a", 2.0, psnr=30.0), low={"psnr": 20.0}, high={"psnr": 40.0})
    found = comparison(wide, row("b", 2.0, psnr=25.0))
    metrics = metrics_of(found)
    made = rows(found, list_methods(found), metrics, primary(metrics))
    bars = [cell.bar for r in made for cell in r.cells if cell.bar]
    assert bars == [(0.0, 0.5, 1.0), (0.25, 0.25, 0.25)]


def test_a_method_that_never_ran_is_no_reference():
    absent = ClipResult(method="peer", budget=None, prompt="", seed=0, status="not_run", note="no GPU")
    found = comparison(row("x", 2.0, psnr=1.0), clips=[absent])
    assert reference_keys(found) == ["full"]


def test_methods_of_a_family_differ_in_mark_or_colour():
    found = comparison(*(row(f"diffusers-{i}", 2.0, psnr=1.0) for i in range(11)))
    drawn = [(m.mark, m.on_light) for m in list_methods(found)]
    assert len(set(drawn)) == 12
    assert len({(m.mark, m.on_dark) for m in list_methods(found)}) == 12


def test_metric_names():
    found = comparison(replace(row("x", 2.0), mean={"odd": 1.0, "psnr@ode": 2.0, "ssim": 1.0, "psnr": 2.0}))
    assert [m.label for m in metrics_of(found, {"ode": "the ODE"})] == ["PSNR", "SSIM", "odd", "PSNR to the ODE"]
    assert metric("odd").better is None
    assert metric("latents_l2").better == "lower"


def test_numbers():
    assert [number(v, 1) for v in (None, math.nan, math.inf, -math.inf, -1.25, -0.01, 2.0)] == [
        "\u2013", "\u2013", "\u221e", "\u2212\u221e", "\u22121.2", "0.0", "2.0",
    ]  # fmt: skip


def test_no_diagnostics_no_blocks():
    assert diagnostic_blocks({}) == []
    assert diagnostic_blocks({"empty": {}, "none": []}) == []


def test_diagnostics_by_shape():
    first, nested = diagnostic_blocks(
        {
            "verdict": ["one", "two"],
            "num_clips": 8,
            "exact": False,
            "curve": [1, None, 3.0],
            "lines": {"a_b": [1, 2], "c": [3, 4], "step": [5, 7]},
            "by_step": {"10": 1.0, "2": 2.0},
            "records": [{"step": 3, "x": 1}, {"step": 4, "x": 2}],
            "odd": [[1, 2], "x"],
            "nested": {"inner": {"value": 0.123456}},
        }
    )
    assert first.verdicts == ["one", "two"]
    assert first.facts == [("Num clips", "8"), ("Exact", "no")]
    assert {c.title: c.series for c in first.charts} == {
        "Curve": {"Curve": [(0.0, 1.0), (1.0, None), (2.0, 3.0)]},
        "Lines": {"A b": [(5.0, 1.0), (7.0, 2.0)], "C": [(5.0, 3.0), (7.0, 4.0)]},
        "By step": {"By step": [(2.0, 2.0), (10.0, 1.0)]},
        "Records": {"X": [(3.0, 1.0), (4.0, 2.0)]},
    }
    assert first.skipped == ["Odd"]
    assert (nested.title, nested.facts) == ("Inner", [("Value", "0.1235")])


def test_steps_beside_lists_are_their_axis():
    (block,) = diagnostic_blocks({"steps": [10, 20], "error": [0.1, 0.2], "other": [1, 2, 3]})
    assert [c.series for c in block.charts] == [
        {"Error": [(10.0, 0.1), (20.0, 0.2)]},
        {"Other": [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)]},  # of another length: by its own index
    ]


def test_top_level_objects_are_groups():
    groups = diagnostic_groups({"note": "x", "2x": {"verdict": "a", "mean": {"b": 1.0}}, "5x": {"verdict": "c"}})
    assert [(g.title, [b.title for b in g.blocks]) for g in groups] == [("", [""]), ("2x", ["", "Mean"]), ("5x", [""])]


def test_maps_are_packed_as_the_script_unpacks_them():
    choice = torch.arange(12, dtype=torch.int8).reshape(2, 2, 3) % 3
    maps = [ChoiceMap(step, "cond", ("reuse", "order 1, k", "order 2, k"), choice) for step in (4, 7)]
    raw = json.loads(json.dumps(maps_record(maps)))
    (block,) = diagnostic_blocks({"predictors": raw})
    (found,) = block.maps
    assert (found.title, found.steps, found.grid, found.labels) == ("Predictors", [4, 7], (2, 2, 3), raw["labels"])
    assert list(zlib.decompress(base64.b64decode(found.data))) == choice.flatten().tolist() * 2
    assert found.colours == list(palette(raw["labels"]).values())


@pytest.mark.parametrize(
    "change",
    [
        {"choice": [[0] * 4]},
        {"choice": [[0, 1, 2, 9]] * 2},
        {"choice": [[0], [0, 1]]},
        {"choice": [[0.5] * 4] * 2},
        {"choice": "x"},
        {"grid": [2, 2]},
        {"labels": [1]},
        {"steps": []},
    ],
)
def test_maps_that_do_not_fit_together_are_no_maps(change: dict):
    good = {"labels": ["a", "b", "c"], "steps": [1, 2], "grid": [1, 2, 2], "choice": [[0, 1, 2, 0]] * 2}
    assert read_maps("m", good) is not None
    assert read_maps("m", good | change) is None
    diagnostic_groups({"m": good | change})


def test_maps_of_different_sizes_make_no_record():
    labels = ("a",)
    sizes = [ChoiceMap(i, "cond", labels, torch.zeros(1, 1, i + 1, dtype=torch.int8)) for i in range(2)]
    for maps in ([], sizes):
        with pytest.raises(ValueError, match="the same size"):
            maps_record(maps)


def test_strange_diagnostics_do_not_raise():
    deep: dict = {"value": 1}
    for _ in range(50):
        deep = {"deeper": deep}
    odd = {"nan": [math.nan, math.inf, 1.0], "big": [10**400, 1], "text": "x" * 10_000, "deep": deep, "": {"": {}}}
    blocks = diagnostic_blocks(odd)
    assert all(y is None or math.isfinite(y) for b in blocks for c in b.charts for s in c.series.values() for _, y in s)
    assert max(len(text) for b in blocks for _, text in b.facts) < 500


def test_bounds_are_a_family_of_their_own_that_is_not_drawn(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(compare_frontier, "_panel", lambda axes, found, methods, *_: drawn.append(methods))
    found = comparison(row("tap-paper", 2.0, 25.0, psnr=30.0), row("oracle-choice", 2.0, 25.0, psnr=40.0))
    compare_frontier.draw_frontier(tmp_path / "frontier.png", found, PSNR)
    assert [[m.key for m in methods] for methods in drawn] == [["tap-paper"]] * 2
    assert {m.key: m.family for m in list_methods(found)}["oracle-choice"] == "Bounds"
    assert [r.method for r in standings(found, PSNR)[0].ranked] == ["tap-paper"]
