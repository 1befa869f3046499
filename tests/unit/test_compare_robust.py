"""Clips behind simple methods, and what of a clip's figure is chance."""

import math
import statistics

import pytest

from tapvideo.compare.results import ClipResult, Comparison
from tapvideo.compare.robust import with_robustness
from tapvideo.compare.tables import differences, render, save, summarise
from tapvideo.report.compare_methods import list_methods
from tapvideo.report.compare_metrics import metric
from tapvideo.report.compare_table import columns, rows


def clip(method, psnr, prompt="a", draw=0, budget=2.0, **more):
    metrics = {"psnr": psnr} | more.pop("metrics", {})
    return ClipResult(method=method, budget=budget, prompt=prompt, seed=1, draw=draw, status="ok", metrics=metrics)


def table(clips):
    places = dict.fromkeys((c.method, c.budget) for c in clips)
    parts = {place: [c for c in clips if (c.method, c.budget) == place] for place in places}
    found = with_robustness([summarise(m, m, b, part, "") for (m, b), part in parts.items()], clips)
    return {(row.method, row.budget): row for row in found}


SIMPLE = [
    clip("tap-reuse", 30.0), clip("tap-taylor1", 28.0), clip("tap-reuse", 20.0, "b"), clip("tap-taylor1", 33.0, "b"),
]  # fmt: skip


@pytest.mark.parametrize(("a", "b", "behind"), [
    (29.6, 32.6, 0), (29.4, 32.6, 1), (29.4, 32.4, 2), (40.0, 21.0, 1), (None, 34.0, 0),
])  # fmt: skip
def test_a_clip_is_set_against_the_better_of_the_two(a, b, behind):
    found = table([*SIMPLE, clip("m", a), clip("m", b, "b")])
    assert found["m", 2.0].behind == behind
    assert found["tap-reuse", 2.0].behind == 1
    assert found["tap-taylor1", 2.0].behind == 1


def test_nothing_is_said_where_the_two_were_not_made():
    assert table([*SIMPLE[:1], clip("m", 1.0)])["m", 2.0].behind is None  # not both
    assert table([*SIMPLE, clip("m", 1.0), clip("m", 1.0, "c")])["m", 2.0].behind is None  # not of every clip
    assert table([*SIMPLE, clip("m", 1.0, budget=3.0)])["m", 3.0].behind is None
    assert table([*SIMPLE, clip("plain", 1.0, budget=None)])["plain", None].behind is None


def test_a_draw_is_set_against_its_own():
    further = [clip("tap-reuse", 40.0, draw=1), clip("tap-taylor1", 28.0, draw=1)]
    found = table([*SIMPLE, *further, clip("m", 35.0), clip("m", 35.0, draw=1)])
    assert found["m", 2.0].behind == 1


def test_chance_is_pooled_over_clips():
    values = {"a": [30.0, 34.0], "b": [20.0, 20.0, 26.0]}
    found = table([clip("m", v, prompt, draw) for prompt, drawn in values.items() for draw, v in enumerate(drawn)])
    variances = [statistics.variance(drawn) * (len(drawn) - 1) for drawn in values.values()]
    assert found["m", 2.0].chance == pytest.approx(math.sqrt(sum(variances) / 3))
    assert table([clip("m", 1.0), clip("m", 5.0, "b")])["m", 2.0].chance is None  # nothing was drawn twice
    assert table([clip("m", 1.0), clip("m", None, draw=1)])["m", 2.0].chance is None


def comparison(clips):
    found = Comparison(title="", command="", versions={}, device="", settings={}, clips=clips)
    found.table = list(table(clips).values())
    found.differences = differences(clips, ["peer"], 2.0)
    return found


def drawn():
    """Two methods of three clips, of which one was drawn again."""
    ours = [clip("tap-paper", v, p, d, metrics={"psnr@ode": v - 1} if not d else {}) for v, p, d in (
        (30.0, "a", 0), (36.0, "b", 0), (34.0, "a", 1),
    )]  # fmt: skip
    return [*ours, clip("peer", 28.0, "a"), clip("peer", 35.0, "b"), clip("peer", 31.0, "a", 1)]


def test_draws_are_paired_and_count_and_have_no_other_references(tmp_path):
    found = comparison(drawn())
    (psnr,) = (d for d in found.differences if d.metric == "psnr")
    assert (psnr.num_clips, psnr.mean) == (3, pytest.approx((2 + 1 + 3) / 3))
    own = found.table[0]
    assert own.mean == {"psnr": pytest.approx(100 / 3), "psnr@ode": pytest.approx(32.0)}
    assert own.num_clips == 3
    save(tmp_path, found)
    assert (tmp_path / "results.csv").read_text().splitlines()[0].startswith("method,budget,prompt,seed,draw,")


def test_both_are_told_where_there_are_figures():
    text = render(comparison(drawn()), {2.0: 25.0}, 0.05)
    assert "2.8" in text  # the root of (30 - 34)^2 / 2
    assert "chance: standard deviation" in text
    assert "behind: clips" not in text
    text = render(comparison([*SIMPLE, clip("m", 1.0)]), {2.0: 25.0}, 0.05)
    assert "behind: clips that are more than 0.5 dB below the better of tap-reuse and tap-taylor1" in text
    assert "chance: standard" not in text


@pytest.mark.parametrize(("clips", "keys"), [
    (drawn(), ["chance"]), ([*SIMPLE, clip("m", 1.0)], ["behind"]), ([clip("m", 1.0)], []),
])  # fmt: skip
def test_the_page_has_columns_for_what_is_known(clips, keys):
    found, psnr = comparison(clips), metric("psnr")
    heads = [column.key for column in columns([psnr], psnr, found.table)]
    assert heads == ["budget", "psnr", "worst", *keys, "passes", "speedup", "clips"]
    for row in rows(found, list_methods(found), [psnr], psnr):
        assert len(row.cells) == len(heads)


def test_the_pages_figures_are_of_their_row():
    found, psnr = comparison([*SIMPLE, clip("m", 1.0), clip("m", 40.0, "b")]), metric("psnr")
    place = [column.key for column in columns([psnr], psnr, found.table)].index("behind")
    shown = {row.label: row.cells[place].text for row in rows(found, list_methods(found), [psnr], psnr)}
    assert shown == {"Tap-reuse": "1", "Tap-taylor1": "1", "M": "1"}
