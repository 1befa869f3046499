"""A comparison's configuration, and the two sets it keeps apart."""

from dataclasses import replace

import pytest
from hydra import compose, initialize_config_dir

from tapvideo.compare.config import CompareConfig, compare_folder, default_presets, read_list, read_sets
from tapvideo.compare.results import is_bound
from tapvideo.compare.runner import all_methods, choose_methods, reference_schedulers
from tapvideo.config import ConfigError, ForecastConfig, ModelConfig, config_dir, from_hydra
from tapvideo.tiny.scenes import is_held_out, parse_caption


def composed(*overrides):
    with initialize_config_dir(str(config_dir().resolve()), version_base="1.3"):
        return from_hydra(CompareConfig, compose("compare", overrides=list(overrides)))


def test_a_model_with_one_scheduler_is_compared_with_no_other():
    assert reference_schedulers(composed("preset=quick", "model=mochi")) == ["model"]


def test_python_and_yaml_have_the_same_defaults():
    config = composed()
    assert replace(config, model=ModelConfig(), methods=[]) == CompareConfig()
    left_out = {"cache-dit-dbcache-foca", "cache-dit-dbcache-dmd"}
    left_out |= {"tap-recompute", "tap-recompute5", "tap-calibrated", "tap-calibrated-interval"}
    left_out |= {"oracle-choice", "oracle-weights"}
    left_out |= {"tap-paper-spread", "tap-paper-calibrated", "tap-reuse-calibrated", "tap-unguarded"}
    assert set(config.methods) == set(all_methods(config)) - left_out
    assert config.presets == default_presets()


def test_full_preset_is_what_the_readme_reports():
    config = composed("preset=full")
    assert config.methods == []
    assert (config.budgets, config.num_prompts, len(config.seeds)) == ([2.0, 2.5, 3.5, 5.0], 16, 2)
    assert config.ode_steps >= 2 * config.steps
    assert len(read_sets(config)[1]) == 16


def test_overrides_win_over_the_preset():
    assert composed("preset=full", "budgets=[3]").budgets == [3.0]


def test_sets_are_disjoint_and_reporting_is_held_out_of_training():
    tuning, reporting = read_list("prompts", "compare_tuning", 8), read_list("prompts", "compare_reporting", 16)
    assert not set(tuning) & set(reporting)
    assert len(set(reporting)) == 16
    assert all(is_held_out(prompt) for prompt in reporting)
    assert not any(is_held_out(prompt) for prompt in tuning)
    for prompt in (*tuning, *reporting):
        parse_caption(prompt)


def test_a_preset_is_called_by_its_key():
    """Or one that does not say its name would take another's place."""
    presets = {"paper": ForecastConfig(), "mine": ForecastConfig(blend=0.5)}
    presets = CompareConfig(presets=presets, schedules={}).presets
    assert [preset.name for preset in presets.values()] == ["paper", "mine"]


@pytest.mark.parametrize("preset", ["quick", "full"])
def test_seeds_of_the_two_sets_are_disjoint(preset):
    config = composed(f"preset={preset}")
    reported = {*config.seeds, *(seed + config.other_seed for seed in config.seeds)}
    assert not reported & set(config.tuning_seeds)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"budgets": [1.0]}, "budgets=[1.0]"),
        ({"budgets": []}, "budgets=[]"),
        ({"budgets": [26.0]}, "up to 25"),
        ({"tolerance": 0.0}, "tolerance=0.0"),
        ({"metrics": ["ssim"]}, "lacks psnr"),
        ({"metrics": ["psnr", "nosuch"]}, "nosuch"),
        ({"num_prompts": 0}, "num_prompts=0"),
        ({"tuning_seeds": [1]}, "tuning_seeds=[1]"),
        ({"tuning_seeds": [9001]}, "tuning_seeds=[9001]"),
        ({"seeds": [1, 1]}, "seeds=[1, 1]"),
        ({"seeds": [2**63]}, f"seeds=[{2**63}] is not a list of seeds"),
        ({"scheduler": "ddim"}, "scheduler='ddim'"),
    ],
)
def test_errors_name_key_and_value(values, said):
    with pytest.raises(ConfigError, match=said.replace("[", r"\[").replace("]", r"\]")):
        CompareConfig(**values)


def test_unknown_method_names_those_that_are():
    with pytest.raises(ConfigError, match=r"methods=.*'nosuch'.*allowed: steps-unipc.*rule-easycache"):
        choose_methods(CompareConfig(methods=["nosuch"]))


def test_methods_are_all_by_default_in_the_tables_order():
    config = CompareConfig()
    assert [m.key for m in choose_methods(config)] == [key for key in all_methods(config) if not is_bound(key)]
    assert [m.key for m in choose_methods(CompareConfig(methods=["tap-paper", "steps-euler"]))] == [
        "tap-paper",
        "steps-euler",
    ]


def test_prompt_file_that_is_missing_or_short_is_an_error():
    with pytest.raises(ConfigError, match=r"prompts='nosuch'.*compare_reporting"):
        read_list("prompts", "nosuch", 1)
    with pytest.raises(ConfigError, match="num_prompts=999"):
        read_list("prompts", "compare_reporting", 999)


def test_sets_that_share_a_prompt_are_refused():
    with pytest.raises(ConfigError, match="nothing in common"):
        read_sets(CompareConfig(tuning_prompts="compare_reporting", tuning_seeds=[7]))


def test_folder_depends_on_what_is_compared_and_not_on_where_it_lies(tmp_path):
    one, two = CompareConfig(output_dir=str(tmp_path)), CompareConfig(output_dir="x", verbose=False)
    assert compare_folder(one, ["a"]).name == compare_folder(two, ["a"]).name
    assert compare_folder(one, ["a"]) != compare_folder(one, ["b"])
    assert compare_folder(one, ["a"]).name.startswith("compare-wan_tiny-quick-")
    assert compare_folder(CompareConfig(name="../x"), ["a"]).parent == compare_folder(CompareConfig(), ["a"]).parent


def test_a_file_of_prompts_can_be_named():
    """Hydra takes KEY=value for a choice among the files of conf/KEY, where there is such a folder."""
    assert composed("prompts=mine.txt", "tuning_prompts=others.txt").prompts == "mine.txt"
