"""The comparison on a model that is not Wan: fused guidance, packed latents, steps that nobody tells."""

import pipelines_random
import pytest
from hydra import compose, initialize_config_dir

from tapvideo.compare import run
from tapvideo.compare.config import CompareConfig
from tapvideo.compare.methods import NotPossible
from tapvideo.compare.own import fewer_steps
from tapvideo.compare.runner import all_methods, choose_methods, open_studio, reference_schedulers
from tapvideo.config import ConfigError, config_dir, from_hydra
from tapvideo.models.watch import watched
from tapvideo.report.compare_load import read_comparison
from tapvideo.sample import sample

METHODS = [
    "steps-euler", "tap-paper", "tap-recompute", "diffusers-fbcache", "diffusers-taylorseer", "cache-dit-dbcache",
    "rule-teacache", "rule-easycache",
]  # fmt: skip


@pytest.fixture
def config(tmp_path):
    """`python eval/compare.py model=.. model.weights=.. preset=quick` on tiny weights."""

    def make(model, *overrides, weights=None):
        folder = pipelines_random.save(weights or model, tmp_path / "weights")
        small = [f"model.weights={folder}", "preset=quick", "steps=12", "ode_steps=14", "budgets=[2.0]"]
        small += ["num_prompts=1", "height=32", "width=32", "num_frames=9", "dtype=float32", "max_sequence_length=16"]
        small += [f"output_dir={tmp_path / 'out'}", "verbose=false", "tolerance=0.2"]
        with initialize_config_dir(str(config_dir().resolve()), version_base="1.3"):
            return from_hydra(CompareConfig, compose("compare", [f"model={model}", *small, *overrides]))

    return make


@pytest.mark.parametrize(("model", "calls", "lists"), [
    ("ltx", 1, ("transformer_blocks",)), ("hunyuan", 1, ("transformer_blocks", "single_transformer_blocks")),
    ("cogvideox_2b", 1, ("transformer_blocks",)),
])  # fmt: skip
def test_bench_counts_calls_and_blocks(config, model, calls, lists):
    studio = open_studio(config(model))
    bench = studio.bench
    assert bench.branches == calls
    blocks = bench.ledger.share(*lists)
    assert 0.2 < blocks < 1
    assert bench.skip_cost == pytest.approx(1 - blocks)
    assert 0 < bench.head_cost < 0.2
    assert sum(bench.ledger.costs.values()) == pytest.approx(bench.ledger.per_call)


def test_steps_are_counted_where_nobody_tells_them(config):
    made = config("ltx")
    bench = open_studio(made).bench
    calls = []
    with watched(bench.pipe.transformer, calls.append):
        for seed in (0, 1):
            sample(bench.pipe, bench.config, "a red circle", seed, lambda step: None)
    assert [call.step for call in calls] == [*range(12), *range(12)]
    assert {call.branch for call in calls} == {"cond_uncond"}


def test_references_are_of_the_models_own_schedulers(config):
    expected = {"ltx": ["model", "unipc"], "hunyuan": ["euler", "unipc"], "cogvideox_2b": ["ddim", "dpm"]}
    assert {model: reference_schedulers(config(model)) for model in expected} == expected
    assert [m.key for m in choose_methods(config("ltx", "methods=[steps-euler,tap-paper]"))] == [
        "steps-model", "steps-euler", "tap-paper",
    ]  # fmt: skip
    assert "steps-euler" not in all_methods(config("ltx", "methods=[]"))
    bench = open_studio(config("ltx")).bench
    with pytest.raises(NotPossible, match="a LTXPipeline takes model, unipc"):
        fewer_steps("euler", "").variants(bench, 6.0)


def test_two_experts_are_refused(config):
    with pytest.raises(ConfigError, match="model=wan22: two experts cannot be compared"):
        run(config("wan22"))


@pytest.mark.slow
def test_comparison_on_ltx(config):
    made = config("ltx", f"methods=[{','.join(METHODS)}]")
    found = read_comparison(run(made))
    rows = {row.method: row for row in found.table}
    assert list(rows) == ["plain", "unipc12", "ode", "steps-model", *METHODS, "plain-rerun", "other-seed"]
    assert rows["plain"].full_passes == pytest.approx(12)
    assert rows["steps-model"].full_passes == pytest.approx(6)
    again = next(clip for clip in found.clips if clip.method == "plain-rerun")
    assert set(again.step_error) == {0.0}  # bit for bit: no method left anything behind
    absent = next(clip for clip in found.clips if clip.method == "steps-euler")
    assert (absent.status, absent.note) == ("not_run", "a LTXPipeline takes model, unipc")
    for key in METHODS[1:]:
        assert rows[key].num_clips == 1, rows[key].note
        assert rows[key].full_passes == pytest.approx(6, rel=0.2)
        assert rows[key].mean["psnr"] > 30
    assert "per token" in found.diagnostics["2x"]["verdict"]
