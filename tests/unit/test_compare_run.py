"""A whole comparison on a tiny random model: what it leaves, that it goes on where it was, and that it never stops."""

import json
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from tapvideo.compare import clips, run, runner, shadows
from tapvideo.compare.config import CompareConfig
from tapvideo.compare.flops import count_flops, first_call
from tapvideo.compare.methods import Bench, Knob, Method, Variant
from tapvideo.compare.store import Store
from tapvideo.config import ForecastConfig
from tapvideo.report.compare_load import read_comparison

pytestmark = pytest.mark.slow
METHODS = ["steps-unipc", "tap-paper", "diffusers-fbcache", "diffusers-fastercache"]


@pytest.fixture
def config(tmp_path):
    for name, text in (("tuning", "tune"), ("reporting", "one\ntwo")):
        (tmp_path / f"{name}.txt").write_text(text)
    return CompareConfig(
        methods=METHODS,
        budgets=[2.0],
        tolerance=0.2,
        tuning_prompts=str(tmp_path / "tuning.txt"),
        prompts=str(tmp_path / "reporting.txt"),
        steps=12,
        ode_steps=14,
        height=16,
        width=16,
        num_frames=5,
        metrics=["psnr", "ssim"],
        output_dir=str(tmp_path / "out"),
        verbose=False,
    )


@pytest.fixture
def made(wan, monkeypatch):
    """Prompts of all clips that are made, on a random model whose text encoder is a hash."""
    pipe = wan.random_pipeline()

    def encode_prompt(prompt, negative_prompt=None, **_):
        seeds = (sum((prompt or "").encode()), 1)
        return tuple(torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds)

    pipe.encode_prompt = encode_prompt

    def open_studio(config):
        base, store = config.base(), Store(runner.Path(config.output_dir) / "compare-clips")
        with first_call(pipe.transformer) as captured:
            wan.denoise(pipe, steps=2, frames=5, size=16)
        bench = Bench(pipe, base, count_flops(pipe.transformer, captured.args, captured.kwargs), branches=2)
        return clips.Studio(bench, store, config, weights="random")

    prompts, sample = [], clips.sample

    def counted(pipe, config, prompt, *args, **kwargs):
        prompts.append(prompt)
        return sample(pipe, config, prompt, *args, **kwargs)

    monkeypatch.setattr(runner, "open_studio", open_studio)
    monkeypatch.setattr(clips, "sample", counted)
    monkeypatch.setattr(shadows, "sample", counted)
    monkeypatch.setattr(runner, "write_comparison_report", lambda folder, comparison: folder)
    return prompts


def test_comparison_leaves_results_and_goes_on_where_it_was(config, made):
    folder = run(config, command="this")
    found = read_comparison(folder)
    rows = {row.method: row for row in found.table}
    assert list(rows) == ["plain", "euler12", "ode", *METHODS, "plain-rerun", "other-seed"]
    assert rows["plain"].speedup == 1.0
    assert rows["plain"].full_passes == pytest.approx(12)
    assert rows["ode"].full_passes == pytest.approx(14)
    assert rows["steps-unipc"].full_passes == pytest.approx(6)
    assert rows["tap-paper"].mean["psnr@ode"] is not None
    again = [clip for clip in found.clips if clip.method == "plain-rerun"]
    assert all(clip.metrics["psnr"] is None and set(clip.step_error) == {0.0} for clip in again)  # bit for bit
    other = [clip for clip in found.clips if clip.method == "other-seed"]
    assert all(clip.metrics["psnr"] < 40 and clip.seed == 1 for clip in other)
    absent = [clip for clip in found.clips if clip.method == "diffusers-fastercache"]
    assert all(clip.status == "not_run" and "IndexError" in clip.note for clip in absent)
    assert {d.rival for d in found.differences} == {"steps-unipc", "diffusers-fbcache"}
    assert "per token" in found.diagnostics["2x"]["verdict"]
    videos = [clip.video for clip in found.clips if clip.status == "ok"]
    assert all((folder / video).is_file() for video in videos)

    first, entries = (folder / "results.json").read_bytes(), len(made)
    run(config, command="this")
    assert made[entries:] == ["tune"]  # what could not run is tried once more; nothing else is made again
    assert (folder / "results.json").read_bytes() == first

    clip = json.loads(first)["clips"][5]
    (entry,) = [
        path
        for path in (folder.parent / "compare-clips").glob("*/entry.json")
        if json.loads(path.read_text())["values"] == {**clip, "budget": None, "note": "", "video": None}
    ]
    entry.write_text(entry.read_text()[:100])
    del made[:]
    run(config, command="this")
    assert made == ["tune"] + [clip["prompt"]] * 2  # the clip, and its un-accelerated neighbour in time for the ratio


def test_further_draws_have_their_own_references_and_are_not_made_again(config, made):
    config.methods, config.draws, config.diagnostics = ["steps-unipc", "tap-reuse", "tap-taylor1"], 2, False
    folder = run(config)
    found = read_comparison(folder)
    rows = {row.method: row for row in found.table}
    assert (rows["plain"].num_clips, rows["nudged"].num_clips, rows["steps-unipc"].num_clips) == (2, 2, 4)
    assert rows["nudged"].label == "un-accelerated, noise nudged by 0.001"
    assert 40 < rows["nudged"].mean["psnr"] < 120  # of a random model
    assert rows["steps-unipc"].chance > 0
    assert rows["steps-unipc"].mean["psnr@ode"] is not None
    assert rows["steps-unipc"].behind is not None
    by_draw = {(c.prompt, c.draw): c.metrics["psnr"] for c in found.clips if c.method == "steps-unipc"}
    assert len(by_draw) == len(set(by_draw.values())) == 4
    assert all((clip.video is None) is (clip.draw > 0) for clip in found.clips)

    entries = len(made)
    again = run(config)
    assert (made[entries:], again) == ([], folder)
    config.nudge = 0.01  # other draws, and the same first clips
    first = {
        c.prompt: c.metrics["psnr"]
        for c in read_comparison(run(config)).clips
        if c.method == "steps-unipc" and not c.draw
    }
    assert first == {prompt: by_draw[prompt, 0] for prompt in ("one", "two")}
    assert made[entries:].count("one") == 1 + 3  # of the draw the reference and the methods; none of the first


def test_diagnostics_of_all_budgets_come_from_the_same_runs(config, made):
    config.methods, config.budgets = ["tap-paper"], [2.0, 3.0]
    found = read_comparison(run(config))
    assert made[-2:] == ["one", "two"]  # once each, after all clips
    assert made.count("one") == made.count("two")
    errors = [found.diagnostics[budget]["residual error, mean over steps"]["per token"] for budget in ("2x", "3x")]
    assert errors[0] < errors[1]


def test_method_that_fails_on_the_way_is_a_row_and_the_rest_goes_on(config, made, monkeypatch):
    @contextmanager
    def apply(bench, settings):
        if made[-1] != "tune":
            raise RuntimeError("out of luck")
        yield bench.config

    broken = Method("broken", "Broken", lambda b, t: [Variant({}, Knob("x", values=(1,)), lambda s: t)], apply)
    whole = runner.all_methods
    monkeypatch.setattr(runner, "all_methods", lambda config: {**whole(config), "broken": broken})
    config.methods = ["broken", "steps-unipc"]
    config.diagnostics = False
    found = read_comparison(run(config))
    rows = {row.method: row for row in found.table}
    assert rows["broken"].num_failed == 2
    assert rows["broken"].note == "RuntimeError: out of luck"
    assert rows["steps-unipc"].num_clips == 2


def test_a_preset_that_was_changed_is_tuned_anew(config, made):
    """What was found for another one of its name is not taken for it."""
    found = []
    for proxy in ("cosine", "l2"):
        presets = {**config.presets, "paper": ForecastConfig(name="paper", proxy=proxy)}
        asked = replace(config, methods=["tap-paper"], presets=presets, name=f"by-{proxy}")
        clips_made = read_comparison(run(asked, command="this")).clips
        found.append({clip.settings["proxy"] for clip in clips_made if clip.method == "tap-paper"})
    assert found == [{"cosine"}, {"l2"}]
