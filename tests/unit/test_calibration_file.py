"""Calibrations on disk: what is written is read, what is no calibration is refused, and the one that fits is found."""

import json
import pickle

import pytest
import torch
from calibrations import made_up
from safetensors.torch import load_file, save_file

from tapvideo.calibration import find as finding
from tapvideo.calibration.file import FORMAT, Calibration, load_calibration
from tapvideo.calibration.find import RunKind, find_calibration, own_folder
from tapvideo.calibration.weights import fit
from tapvideo.config import ConfigError

KIND = RunKind(weights="org/wan", scheduler="UniPCMultistepScheduler", flow_shift=3.0, steps=12, guidance=5.0)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The user's folder, and that of what ships, both empty."""
    monkeypatch.setenv("TAPVIDEO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(finding, "SHIPPED", tmp_path / "shipped")
    return tmp_path


def refused(path):
    """The message with which a file is refused: one line that names key, path and what is allowed."""
    with pytest.raises(ConfigError) as caught:
        load_calibration(path)
    message = str(caught.value)
    assert message.startswith(f"tap.calibration={str(path)!r} cannot be read (")
    assert message.endswith("; allowed: a file that tapvideo-calibrate wrote")
    return message


def rewritten(path, meta=None, about=None, **tensors):
    """A saved calibration with other tensors (None: without) or other metadata."""
    made_up().save(path)
    whole = {name: tensor for name, tensor in {**load_file(path), **tensors}.items() if tensor is not None}
    about = json.dumps({"branches": ["cond", "uncond"], "steps": 12}) if about is None else about
    save_file(whole, path, metadata={"format": FORMAT, "about": about} if meta is None else meta)
    return path


def test_a_file_is_read_as_it_was_written(tmp_path):
    made = made_up(note="as it is: äöü")
    made.save(tmp_path / "new" / "folder" / "one.safetensors")
    read = load_calibration(tmp_path / "new" / "folder" / "one.safetensors")
    assert (read.branches, read.about) == (made.branches, made.about)
    for name in ("gram", "mix", "sensitivity", "plans"):
        assert torch.equal(getattr(read, name), getattr(made, name))
        assert getattr(read, name).dtype == getattr(made, name).dtype
    assert read.num_steps == 12
    assert read.weights("uncond", [5, 3, 1], 7) == made.weights("uncond", [5, 3, 1], 7)
    assert [p.name for p in (tmp_path / "new" / "folder").iterdir()] == ["one.safetensors"]


def test_weights_are_of_the_branch_that_is_named():
    made = made_up()
    found = fit(made.gram, made.mix[0], torch.tensor([[5, 3]]), torch.tensor([7]))[0]
    assert made.weights("cond", [5, 3], 7) == found[0].tolist()
    assert made.weights("uncond", [5, 3], 7) == found[1].tolist()
    with pytest.raises(ConfigError, match=r"tap.calibration has no branch 'other'; allowed: runs of cond, uncond"):
        made.weights("other", [5, 3], 7)


def test_best_steps_are_those_of_the_plan():
    made = made_up()
    assert made.full_steps == list(range(4, 13))
    for count in made.full_steps:
        steps = made.best_steps(count)
        assert (len(steps), steps[:2]) == (count, [0, 1])
    for count in (0, 3, 13):
        with pytest.raises(ValueError, match=f"no plan with {count} full steps; allowed: 4 to 12"):
            made.best_steps(count)


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "one.safetensors"
    made_up().save(path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("tapvideo.video_io.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        made_up(seed=1).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_others_may_read_a_file_as_they_may_any_other(tmp_path):
    """`save_file` of safetensors 0.8 leaves files that nobody but their owner can read, whatever the umask is."""
    made_up().save(tmp_path / "one.safetensors")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "one.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_is_not_there_is_refused(tmp_path):
    refused(tmp_path / "nothing.safetensors")
    refused(tmp_path)


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_a_file_that_was_cut_short_is_refused(tmp_path, size):
    path = tmp_path / "cut.safetensors"
    made_up().save(path)
    path.write_bytes(path.read_bytes()[:size])
    refused(path)


def test_a_pickle_is_refused_and_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("the pickle ran",))

    path = tmp_path / "trap.safetensors"
    path.write_bytes(pickle.dumps(Trap()))
    refused(path)
    torch.save({"gram": torch.eye(2)}, path)
    refused(path)


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        ({}, "its format is None"),
        ({"format": "tapvideo-calibration-9"}, "its format is 'tapvideo-calibration-9', not 'tapvideo-calibration-1'"),
        ({"format": FORMAT}, "about"),
        ({"format": FORMAT, "about": "{"}, "Expecting"),
        ({"format": FORMAT, "about": "[]"}, ""),
        ({"format": FORMAT, "about": "{}"}, "branches"),
        ({"format": FORMAT, "about": '{"branches": 2}'}, ""),
    ],
)
def test_other_metadata_are_refused(tmp_path, meta, said):
    assert said in refused(rewritten(tmp_path / "x.safetensors", meta=meta))


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("gram", torch.eye(23).double()),
        ("gram", torch.eye(24)[:, :12].double()),
        ("gram", torch.ones(24).double()),
        ("gram", torch.eye(24)),  # of half the precision
        ("mix", torch.ones(3).double()),
        ("sensitivity", torch.ones(11).double()),
        ("sensitivity", torch.ones(12, 1).double()),
        ("sensitivity", torch.ones(12)),
        ("sensitivity", torch.tensor(1.0).double()),
        ("plans", torch.ones(12, 12).bool()),
        ("plans", torch.ones(13, 12)),
    ],
)
def test_tensors_that_do_not_belong_together_are_refused(tmp_path, name, tensor):
    assert "do not belong together" in refused(rewritten(tmp_path / "x.safetensors", **{name: tensor}))


@pytest.mark.parametrize("name", ["gram", "mix", "sensitivity", "plans"])
def test_a_tensor_that_is_missing_is_named(tmp_path, name):
    assert name in refused(rewritten(tmp_path / "x.safetensors", **{name: None}))


@pytest.mark.parametrize("change", ["no plan", "another number", "a first step that is not full"])
def test_plans_that_are_none_are_refused(tmp_path, change):
    plans = made_up().plans.clone()
    if change == "no plan":
        plans[:] = False
    elif change == "another number":
        plans[6, 2:] = True
    else:
        plans[12] = False
        plans[11, 0], plans[11, 1:] = False, True
    assert "plans" in refused(rewritten(tmp_path / "x.safetensors", plans=plans))


@pytest.mark.parametrize("name", ["gram", "mix", "sensitivity"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(tmp_path, name, value):
    tensor = getattr(made_up(), name).clone()
    tensor.flatten()[3 if name != "mix" else 1] = value
    assert "not finite" in refused(rewritten(tmp_path / "x.safetensors", **{name: tensor}))


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_sensitivity_that_is_not_positive_is_refused(tmp_path, value):
    tensor = made_up().sensitivity.clone()
    tensor[4] = value
    assert "not positive" in refused(rewritten(tmp_path / "x.safetensors", sensitivity=tensor))


def test_the_folder_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("TAPVIDEO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert own_folder() == tmp_path / "home" / "calibrations"
    monkeypatch.delenv("TAPVIDEO_HOME")
    assert own_folder() == tmp_path / "cache" / "tapvideo" / "calibrations"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert own_folder() == tmp_path / ".cache" / "tapvideo" / "calibrations"


def test_ones_own_goes_before_what_ships(home):
    assert find_calibration(KIND) is None
    made_up().save(home / "shipped" / "a.safetensors")
    assert find_calibration(KIND) == home / "shipped" / "a.safetensors"
    made_up(seed=1).save(home / "home" / "calibrations" / "z.safetensors")
    assert find_calibration(KIND) == home / "home" / "calibrations" / "z.safetensors"


@pytest.mark.parametrize(
    "about",
    [{"weights": "org/other"}, {"scheduler": "DDIM"}, {"flow_shift": 5.0}, {"flow_shift": None}, {"guidance": 5.01}],
)
def test_a_calibration_of_other_runs_is_not_found(home, about):
    folder = home / "home" / "calibrations"
    made_up(steps=12).save(folder / "b.safetensors")
    assert find_calibration(KIND) == folder / "b.safetensors"
    made = made_up()
    Calibration(made.branches, made.gram, made.mix, made.sensitivity, made.plans, made.about | about).save(
        folder / "b.safetensors"
    )
    assert find_calibration(KIND) is None


def test_a_calibration_of_other_steps_is_not_found(home):
    made_up(steps=13).save(home / "home" / "calibrations" / "b.safetensors")
    assert find_calibration(KIND) is None


def test_rounded_facts_are_the_same(home):
    made_up(flow_shift=3).save(home / "shipped" / "b.safetensors")  # JSON tells no 3 from 3.0
    close = RunKind(KIND.weights, KIND.scheduler, 3.0 + 1e-9, 12, 5.0 - 1e-9)
    assert find_calibration(close) is not None


def test_a_damaged_file_is_passed_over(home):
    folder = home / "home" / "calibrations"
    folder.mkdir(parents=True)
    (folder / "a.safetensors").write_bytes(b"broken")
    (folder / "b.safetensors").mkdir()
    (folder / "notes.txt").write_text("not looked at")
    assert find_calibration(KIND) is None
    made_up().save(folder / "c.safetensors")
    assert find_calibration(KIND) == folder / "c.safetensors"


def test_a_kind_in_words():
    assert str(KIND) == "org/wan with UniPCMultistepScheduler, flow_shift=3, steps=12, guidance=5"
    assert str(RunKind("w", "S", None, 12, 4.5)) == "w with S, steps=12, guidance=4.5"
    assert str(RunKind("w", "S", None, 12, 6.0, 4.0)) == "w with S, steps=12, guidance=6, true_cfg_scale=4"
