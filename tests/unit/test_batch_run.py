"""Batches from configuration to exit code, and what several ranks make of one."""

import json
import os
import sys

import pytest
import torch
from batches import QUIET, Maker, batch_config, events, videos
from ranks import run_ranks

from tapvideo import generate
from tapvideo.batch.config import clip_facts, differences, run_path
from tapvideo.batch.items import read_items
from tapvideo.batch.run import Batch, make_clips, prepare, run
from tapvideo.batch.shard import Outcome, open_books
from tapvideo.batch.store import BatchFolder, Shard, ShardLocked, read_events
from tapvideo.cli.batch import as_override, main
from tapvideo.config import ConfigError
from tapvideo.parallel.config import ParallelConfig
from tapvideo.parallel.topology import build_topology


def test_another_configuration_is_refused_by_name(batch, batch_overrides):
    with pytest.raises(ConfigError, match=r"holds a batch of another configuration: steps=3 \(there: 2\);"):
        prepare(batch_config(*batch_overrides, "seeds=[0,1]", "steps=3"))
    with pytest.raises(ConfigError, match=r"tap\.orders=\[0\] \(there: \[0, 1, 2\]\)"):
        prepare(batch_config(*batch_overrides, "seeds=[0,1]", "tap.orders=[0]"))
    with pytest.raises(ConfigError, match=r"prompts='[0-9a-f]+' .*, seeds="):
        prepare(batch_config(*batch_overrides, "seeds=[0]"))
    with pytest.raises(ConfigError, match="holds a batch of another"):
        batch.folder.claim({**batch.facts, "weights": "others"}, batch.items, {})
    for free in ("shards=3", "verbose=true", "parallel.dp=2", "stop_file=x", "give_up=1"):
        assert prepare(batch_config(*batch_overrides, "seeds=[0,1]", free)).folder == batch.folder
    assert not list(batch.folder.root.glob(".tmp*"))


def test_differences_are_named_by_their_whole_key():
    assert differences({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}}) == [
        "a.c=2 (there: 4)", "d=3 (there: None)",
    ]  # fmt: skip


def test_the_folder_follows_from_what_shapes_the_clips(batch_overrides):
    def path(*more):
        config = batch_config(*batch_overrides, "name=null", *more)
        return run_path(config, read_items(config.prompt_file, config.seeds))

    assert path().name.startswith("random-paper-batch-")
    assert path() == path("shards=4", "shard=3", "verbose=true")
    assert len({path(), path("seeds=[1]"), path("steps=3"), path("tap=off")}) == 4


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("shard=2", r"shard=2 is not one of the shards; allowed: 0 to 0 \(shards=1\)"),
        ("shards=0", "shards=0 is too small"),
        ("prompt=x", "prompt='x' is for one clip"),
        ("compare=true", "compare=True is not for batches"),
        ("name=../x", "name='../x' is no name of a folder"),
        ("+typo=1", "typo"),
        ("give_up=0", "give_up=0 is too small"),
    ],
)
def test_bad_values_are_refused(batch_overrides, override, told):
    with pytest.raises(ConfigError, match=told):
        batch_config(*batch_overrides, override)


def test_prompts_is_a_list_although_hydra_has_a_folder_of_that_name():
    assert as_override("prompts=a b.txt") == "prompt_file=a b.txt"
    assert as_override("seeds=[0]") == "seeds=[0]"
    assert as_override("negative_prompt=a, b") == "negative_prompt='a, b'"


def test_run_loads_once_makes_all_and_then_loads_nothing(batch_overrides, monkeypatch, capsys):
    loaded = []
    load = generate.load_pipeline
    monkeypatch.setattr(generate, "load_pipeline", lambda config: loaded.append(1) or load(config))
    config = batch_config(*batch_overrides)
    assert run(config) is Outcome.DONE
    assert run(config) is Outcome.DONE
    assert loaded == [1]
    out = capsys.readouterr().out
    assert "[4/4]" in out
    assert out.count("4 of 4 clips are there") == 3
    folder = prepare(config).folder
    record = json.loads(folder.facts.read_text())
    assert record["config"]["steps"] == 2
    assert {"torch", "tapvideo"} <= set(record["versions"])
    done = [e for e in read_events(folder.manifest(Shard(0, 1))) if e["event"] == "done"]
    assert set(done[0]["seconds"]) == {"text", "denoise", "vae", "write"}
    assert folder.items() == read_items(config.prompt_file, [0])


def test_dry_run_writes_nothing(batch_overrides, capsys, tmp_path):
    assert run(batch_config(*batch_overrides, "dry_run=true", "shards=2")) is Outcome.DONE
    assert "4 clips, 2 in shard 0000-of-0002" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_stop_file_is_seen_before_anything_is_loaded(batch_overrides, monkeypatch, tmp_path):
    monkeypatch.setattr(generate, "load_pipeline", None)
    stop = tmp_path / "stop here"
    stop.touch()
    config = batch_config(*batch_overrides, f"stop_file='{stop}'")
    assert run(config) is Outcome.STOPPED
    prepare(config).folder.stop.touch()
    stop.unlink()
    assert run(config) is Outcome.STOPPED


def exit_code(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["tapvideo-batch", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    return left.value.code


@pytest.mark.parametrize(
    ("outcome", "code"), [(Outcome.DONE, 0), (Outcome.FAILED, 1), (Outcome.STOPPED, 3), (ShardLocked("x"), 4)]
)
def test_exit_code_tells(monkeypatch, outcome, code, capsys):
    def end(*_args, **_kwargs):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr("tapvideo.cli.batch.run", end)
    assert exit_code(monkeypatch, "prompts=p.txt", "seeds=[0,1]") == code


def test_bad_command_lines_end_in_one_line(monkeypatch, capsys):
    assert exit_code(monkeypatch, "prompts=nowhere.txt") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tapvideo-batch: prompts='nowhere.txt' cannot be read")
    assert exit_code(monkeypatch, "prompts=nowhere.txt", "+typo=1") == 2
    assert "typo" in capsys.readouterr().err


def test_what_is_wrong_with_every_clip_ends_the_batch(batch_overrides):
    with pytest.raises(ConfigError, match=r"tap.probe_depth=9 of a model with"):
        run(batch_config(*batch_overrides, "seeds=[0,1]", "tap.probe=block_output", "tap.probe_depth=9", "steps=12"))


def _on_ranks(root, config, items, bad):
    os.environ["RANK"] = str(torch.distributed.get_rank())
    topology = build_topology(config.parallel, torch.device("cpu"))
    batch = Batch(config, items, BatchFolder(root), clip_facts(config, items))
    maker = Maker(bad=bad)
    if topology.world.rank:
        return make_clips(batch, maker, topology, None, QUIET), maker.made
    asked = []
    with open_books(
        batch.folder, batch.shard, items, should_stop=lambda: len(asked.append(1) or asked) > 3, give_up=9, facts={}
    ) as books:
        return make_clips(batch, maker, topology, books, QUIET), maker.made


@pytest.mark.parametrize(("dp", "per_rank"), [(1, [3, 3, 3, 3]), (2, [3, 3, 3, 3]), (4, [2, 2, 2, 2])])
def test_ranks_do_what_rank_0_decides(batch, dp, per_rank):
    """Rank 0 alone is asked to stop, before the fourth round; with dp=4 all is done after two."""
    config = batch_config(*_overrides(batch), f"parallel.dp={dp}")
    assert config.parallel == ParallelConfig(dp=dp)
    found = run_ranks(4, _on_ranks, batch.folder.root, config, batch.items, ("..",))
    assert len({outcome for outcome, _ in found}) == 1
    assert found[0][0] is (Outcome.FAILED if dp == 4 else Outcome.STOPPED)
    assert [len(made) for _, made in found] == per_rank
    begun = 8 if dp == 4 else 3 * dp
    assert events(batch, "begin") == [item.file for item in batch.items[:begun]]
    assert sorted(events(batch, "done")) == videos(batch)
    failed = [item.file for item in batch.items[:begun] if item.prompt == ".."]
    assert sorted(events(batch, "failed")) == failed
    assert len(videos(batch)) == begun - len(failed)


def _overrides(batch):
    config = batch.config
    return [
        f"model.weights={config.model.weights}", f"output_dir={config.output_dir}", "model.name=random", "height=32",
        "width=32", "num_frames=5", "steps=2", f"prompt_file={config.prompt_file}", "name=run", "seeds=[0,1]",
    ]  # fmt: skip
