"""Making a calibration: what is recorded, what is measured, and one made of a tiny random pipeline from end to end."""

import shutil
from dataclasses import asdict, replace

import pytest
import torch
from calibrations import made_up
from diffusers import AutoencoderKLWan

from tapvideo import calibrate, recorder
from tapvideo.calibration import load_calibration
from tapvideo.calibration.find import RunKind
from tapvideo.config import ConfigError
from tapvideo.console import Console
from tapvideo.models.watch import StackCall, watched
from tapvideo.pipeline import load_pipeline
from tapvideo.recorder import Recorder, apart, mixture
from tapvideo.resolve import resolve, run_kind
from tapvideo.sample import sample
from tapvideo.schedule import StepKind
from tapvideo.schedulers import plan_steps

QUIET = Console(verbose=False)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def told(kept, steps, branches=("cond", "uncond"), tokens=10, batch=1, dtype=torch.float32):
    """Tell a recorder of a clip; its residuals, [branch, step, batch, token, d]."""
    hidden = noise(len(branches), steps, batch, tokens, 8).to(dtype)
    output = noise(len(branches), steps, batch, tokens, 8, seed=1).to(dtype)
    for step in range(steps):
        for i, branch in enumerate(branches):
            call = StackCall(branch, step, None, hidden[i, step], hidden[i, step], output[i, step])
            kept.see(call)
    return output.double() - hidden.double()


@pytest.mark.parametrize(("batch", "dtype"), [(1, torch.float32), (2, torch.float32), (1, torch.bfloat16)])
def test_recorder_has_the_inner_products_per_token(batch, dtype):
    recorder = Recorder(tokens=100)  # more than there are: all
    flat = told(recorder, 3, batch=batch, dtype=dtype).flatten(2).flatten(0, 1)
    assert recorder.branches() == ("cond", "uncond")
    torch.testing.assert_close(recorder.gram(3), flat @ flat.T / (10 * batch), rtol=1e-5, atol=1e-5)


def test_recorder_keeps_the_same_tokens_of_every_step_and_clip():
    recorder, again = Recorder(tokens=4), Recorder(tokens=4)
    residuals = told(recorder, 3)
    told(again, 3)
    rows = recorder._rows
    assert rows is not None
    assert len(rows.unique()) == 4
    flat = residuals[:, :, :, rows].flatten(2).flatten(0, 1)
    torch.testing.assert_close(recorder.gram(3), flat @ flat.T / 4, rtol=1e-5, atol=1e-5)
    assert torch.equal(again.gram(3), recorder.gram(3))


def test_recorder_multiplies_piece_by_piece(monkeypatch):
    kept = Recorder(tokens=10)
    told(kept, 3)
    whole = kept.gram(3)
    monkeypatch.setattr(recorder, "_COLUMNS", 24)  # three tokens of eight channels at a time
    torch.testing.assert_close(kept.gram(3), whole)


@pytest.mark.parametrize("seen", [0, 2, 4])
def test_recorder_refuses_a_clip_of_other_steps(seen):
    recorder = Recorder(tokens=4)
    told(recorder, seen)
    with pytest.raises(ConfigError, match=f"steps=3 is not what the pipeline made: it told of {seen} steps"):
        recorder.gram(3)


def test_mixture_is_the_guided_sum():
    assert mixture(("cond", "uncond"), 5.0).tolist() == [5.0, -4.0]
    assert mixture(("uncond", "cond"), 5.0).tolist() == [-4.0, 5.0]
    assert mixture(("cond",), 5.0).tolist() == [1.0]
    assert mixture(("cond_uncond",), 5.0).tolist() == [1.0]


def test_branches_that_are_mixed_otherwise_are_kept_apart():
    gram = noise(6, 6).double()
    assert torch.equal(apart(gram, ("cond", "uncond")), gram)
    assert torch.equal(apart(gram, ("cond",)), gram)
    expected = gram.clone()
    expected[:3, 3:] = expected[3:, :3] = 0
    assert torch.equal(apart(gram, ("one", "other")), expected)


def test_several_ranks_are_refused(asked, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="WORLD_SIZE=2: a calibration is made by one process; allowed: 1"):
        calibrate.run(asked())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tokens=0", "tokens=0 is too small; allowed: 1 or more"),
        ("probes=0", "probes=0 is too small; allowed: 1 or more"),
        ("probe_clips=0", "probe_clips=0 is too small; allowed: 1 or more"),
        ("rehearsal_clips=-1", "rehearsal_clips=-1 is too small; allowed: 0 or more"),
        ("moves=-1", "moves=-1 is too small; allowed: 0 or more"),
        (["moves=3", "rehearsal_clips=0"], "moves=3 needs clips and speedups, and rehearsal_clips=0; allowed here: 0"),
        (["moves=3", "speedups=[]"], r"moves=3 needs clips and speedups, and speedups=\[\]; allowed here: 0"),
        ("steps=11", "steps=11 leaves nothing to forecast; allowed: 12 or more"),
        ("probes=12", "probes=12 of 12 steps; allowed: 1 to 11"),
        ("speedups=[2,7]", r"speedups=\[2.0, 7.0\]; allowed: numbers above 1, up to 6"),
        ("speedups=[1]", r"speedups=\[1.0\]; allowed: numbers above 1, up to 6"),
        ("output=made.bin", "output='made.bin' is no name of a calibration; allowed: names ending in .safetensors"),
        ("+tokenz=1", "tokenz"),
    ],
)
def test_what_cannot_be_is_refused(asked, override, message):
    with pytest.raises(ConfigError, match=message):
        asked(*([override] if isinstance(override, str) else override))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tap=paper", "tap=paper has no use here: a calibration is made of un-accelerated clips, .*; allowed: off"),
        ("schedule=spread", "schedule.kind='spread' has no use here: .*; allowed: schedule=interval as it"),
        ("schedule.interval=5", "schedule.interval=5 has no use here"),
        ("compare=true", "compare=true has no use here: .*; allowed: false"),
    ],
)
def test_what_is_of_use_to_accelerated_clips_alone_is_refused(asked, override, message):
    with pytest.raises(ConfigError, match=message):
        calibrate.run(asked("dry_run=true", override))


def test_a_dry_run_loads_and_writes_nothing(asked, own, monkeypatch, capsys):
    monkeypatch.setattr(calibrate, "load_pipeline", lambda *_: pytest.fail("weights were loaded"))
    path = calibrate.run(asked("dry_run=true", "verbose=true"))
    assert path.parent == own
    assert not own.exists()
    assert str(path) in capsys.readouterr().out


def test_files_of_other_runs_have_other_names(asked, own):
    config = asked("dry_run=true")

    def name(**changes):
        return calibrate.run(replace(config, **changes)).name

    assert name() == name(tokens=5, seeds=[9])
    assert name().startswith("random-unipc-shift3-12-g6")
    long = replace(config.model, name="long_" * 12)  # is cut
    changes = ({"steps": 13}, {"guidance": 5.5}, {"flow_shift": 3.25}, {"scheduler": "euler"}, {})
    assert len({name(model=long, **change) for change in changes}) == 5
    tuned = replace(config.model, weights=shutil.copytree(config.model.weights, f"{own.parent}_tuned"))
    assert name(model=tuned) != name()  # or a tune's calibration would replace the original's


def test_an_output_that_cannot_be_written_is_refused_before_the_work(asked, own, tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate, "load_pipeline", lambda *_: pytest.fail("weights were loaded"))
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "folder.safetensors").mkdir()
    for path in (tmp_path / "file" / "x.safetensors", tmp_path / "folder.safetensors"):
        with pytest.raises(ConfigError, match=r"output='.*safetensors' cannot be written .*; allowed: "):
            calibrate.run(asked(f"output={path}"))


def test_guidance_counts_as_the_pipeline_mixes_it(asked):
    """Where `guidance` is an embedding, another key says how branches are mixed."""
    config = asked("guidance=6.0")
    assert (run_kind(config).scales, run_kind(config).true_cfg) == ([6.0], None)
    model = replace(config.model, pipeline="HunyuanVideoPipeline", call={"true_cfg_scale": 4.0})
    embedded = replace(config, model=model, scheduler="unipc")
    assert (run_kind(embedded).scales, run_kind(embedded).guidance) == ([4.0], 6.0)
    plain = replace(embedded, model=replace(model, call={"true_cfg_scale": 1.0}))
    assert (run_kind(plain).scales, run_kind(plain).true_cfg) == ([6.0], None)
    made = made_up(**asdict(run_kind(plain)))
    assert run_kind(plain).matches(made)
    assert not run_kind(embedded).matches(made)


@pytest.mark.parametrize(("seeds", "shown"), [("[4,5]", 2), ("[4,5,6]", 2), ("[4,5,6]", 1)])
def test_moves_need_a_clip_that_they_do_not_see(asked, seeds, shown):
    with pytest.raises(ConfigError, match=f"moves=3 needs 3 clips or more, .* rehearsals have {shown}; allowed: 0, or"):
        calibrate.run(asked("moves=3", f"seeds={seeds}", f"rehearsal_clips={5 if seeds == '[4,5]' else shown}"))


def test_a_calibration_from_end_to_end(asked, composed, random_overrides, own, monkeypatch):
    decoded, decode, rehearse = [], AutoencoderKLWan.decode, calibrate._rehearse

    def frames_are_made_from_here_on(*args):
        assert not decoded, "nobody sees frames of clips that are recorded"
        return rehearse(*args)

    monkeypatch.setattr(
        AutoencoderKLWan, "decode", lambda *args, **kwargs: decoded.append(1) or decode(*args, **kwargs)
    )
    monkeypatch.setattr(calibrate, "_rehearse", frames_are_made_from_here_on)
    config = asked()
    path = calibrate.run(config, command="tapvideo-calibrate x")
    assert list(own.iterdir()) == [path]
    made = load_calibration(path)
    assert (made.branches, made.num_steps, made.mix.tolist()) == (("cond", "uncond"), 12, [[6.0, -5.0]])
    assert RunKind(**{name: made.about[name] for name in asdict(run_kind(config))}) == run_kind(config)
    assert made.about["name"] == "random"
    about = made.about["made"]
    assert (about["command"], about["clips"]) == ("tapvideo-calibrate x", [["a red circle", 3]])
    assert {"torch", "diffusers", "tapvideo"} <= set(about["versions"])
    assert len(made.sensitivity.unique()) > 1
    assert torch.equal(made.gram, made.gram.T)
    recorder, pipe = Recorder(tokens=6), load_pipeline(config)
    with watched(pipe.transformer, recorder.see):
        sample(pipe, config, "a red circle", 3, lambda _: None, decode=False)
    torch.testing.assert_close(recorder.gram(12), made.gram)
    found = resolve(composed(*random_overrides, "tap=default", "steps=12"))
    assert found.tap.calibration == str(path)
    assert [s for s, kind in enumerate(plan_steps(found)) if kind is StepKind.FULL] == made.best_steps(5)
