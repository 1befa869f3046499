"""Rehearsals: what an error does to a run, which plan comes nearest, and plans that are tried again."""

import math
from dataclasses import replace

import pytest
import torch
from calibrations import made_up

from tapvideo import calibrate, rehearsal
from tapvideo.calibration import load_calibration
from tapvideo.calibration.weights import errors, fit
from tapvideo.config import ConfigError, ForecastConfig, ScheduleConfig
from tapvideo.console import Console
from tapvideo.metrics import psnr
from tapvideo.pipeline import accelerated, load_pipeline
from tapvideo.rehearsal import Known, Shown, _between, candidates, measure_sensitivity, rehearse
from tapvideo.sample import sample
from tapvideo.schedule import StepKind, power_plan, spread_plan

QUIET = Console(verbose=False)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_between_probes_is_a_straight_line_of_logarithms():
    found = _between([2, 4, 8], [0.0, 2.0, 1.0], 10).log()
    expected = torch.tensor([0, 0, 0, 1, 2, 1.75, 1.5, 1.25, 1, 1], dtype=torch.float64)
    torch.testing.assert_close(found, expected)
    assert _between([3], [1.0], 5).tolist() == pytest.approx([math.e] * 5)


def test_sensitivity_is_the_distance_over_the_error(pipe, asked, monkeypatch):
    """Runs that end 7 errors away with one at the first probe, 2 at the second; two clips, each of its own Gram."""
    made = made_up(steps=12)
    clips = [Known(("a", s), made_up(steps=12, seed=s).gram, noise(1, 4)) for s in range(2)]
    probes = [s for s, kind in enumerate(power_plan(12, count=3)) if kind is StepKind.FULL][1:]

    def error(known, step):
        anchors = torch.tensor([[s for s in (step - 1, step - 2, step - 3) if s >= 0]])
        found = fit(made.gram, made.mix[0], anchors, torch.tensor([step]))
        wrong = errors(found, made.mix[0], anchors, torch.tensor([step]), 12)[0]
        return math.sqrt(wrong @ known.gram @ wrong)

    def distances(_pipe, _config, _made, known, full):
        (step,) = set(range(12)) - set(full)
        return [error(k, step) * (7 if step == probes[0] else 2) * f for k, f in zip(known, (0.5, 2.0), strict=True)]

    monkeypatch.setattr(rehearsal, "_distances", distances)
    found = measure_sensitivity(pipe, asked(), made, clips, 2, QUIET)
    torch.testing.assert_close(found, _between(probes, [math.log(7), math.log(2)], 12))


def test_a_rehearsal_keeps_what_comes_nearest(pipe, asked, monkeypatch):
    made = made_up(steps=18)
    tried = candidates(made, 9)
    assert len(tried) == len(set(tried)) > 1
    assert tuple(made.best_steps(9)) in tried
    assert all(len(steps) == 9 and steps[0] == 0 for steps in tried)
    clips = [Shown(("a", 0), noise(1, 2, 2, 3))]
    monkeypatch.setattr(rehearsal, "candidates", lambda *_: tried)  # found once
    for best in tried:

        def errors_of(*given, best=best):
            return [0.1 if given[-1] == list(best) else 0.2]

        monkeypatch.setattr(rehearsal, "_frame_errors", errors_of)
        found = rehearse(pipe, asked("steps=18"), made, clips, [2.0], QUIET)
        assert found.best_steps(9) == list(best)
        others = [count for count in range(19) if count != 9]
        assert torch.equal(found.plans[others], made.plans[others])
    assert rehearse(pipe, asked("steps=18"), made, [], [2.0], QUIET).best_steps(9) == made.best_steps(9)
    least = made.full_steps[0]  # fewer cannot be had, and a row of their own would leave a hole
    assert torch.equal(rehearse(pipe, asked("steps=18"), made, clips, [18 / (least - 1)], QUIET).plans, made.plans)


def test_a_rehearsal_goes_on_from_the_best_by_moves(pipe, asked, monkeypatch):
    """Clips are tried one by one, with what runs, and a schedule that no candidate was is kept."""
    made, goal = made_up(steps=18), [0, 2, 3, 5, 7, 8, 11, 13, 16]
    clips = [Shown(("a", seed), noise(1, 2, 2, 3)) for seed in range(3)]
    monkeypatch.setattr(rehearsal, "candidates", lambda *_: [(0, 2, 3, 5, 7, 8, 9, 10, 11)])

    def errors_of(_pipe, _config, _made, shown, full):
        return [math.exp(-0.1 * len({*full} & {*goal}) - clip.clip[1]) for clip in shown]

    monkeypatch.setattr(rehearsal, "_frame_errors", errors_of)
    found = rehearse(pipe, asked("steps=18"), made, clips, [2.0], QUIET, moves=400)
    assert found.best_steps(9) == goal
    others = [count for count in range(19) if count != 9]
    assert torch.equal(found.plans[others], made.plans[others])


@pytest.mark.parametrize(("elsewhere", "is_kept"), [(-0.1, True), (0.1, False), (0.0, False)])
def test_clips_that_no_move_saw_have_the_last_word(pipe, asked, monkeypatch, elsewhere, is_kept):
    first, asked_of = (0, 2, 3, 5, 7, 8, 9, 10, 11), {}
    made, clips = made_up(steps=18), [Shown(("a", seed), noise(1, 2, 2, 3)) for seed in range(6)]
    monkeypatch.setattr(rehearsal, "candidates", lambda *_: [first])

    def errors_of(_pipe, _config, _made, shown, full):
        for clip in shown:
            asked_of.setdefault(clip.clip[1], set()).add(tuple(full))
        nearer = len({*full} - {*first})
        return [math.exp(nearer * (elsewhere if clip.clip[1] in (2, 5) else -0.1)) for clip in shown]

    monkeypatch.setattr(rehearsal, "_frame_errors", errors_of)
    found = rehearse(pipe, asked("steps=18"), made, clips, [2.0], QUIET, moves=30)
    assert (found.best_steps(9) != [*first]) is is_kept
    assert len(asked_of[2]) == len(asked_of[5]) == 2
    assert min(len(asked_of[clip]) for clip in (0, 1, 3, 4)) > 2


def test_what_is_rehearsed_is_what_runs(asked, own):
    """Frames of `tap=default` with these full steps, against the un-accelerated ones."""
    config = asked("rehearse=auto")
    path = calibrate.run(asked())
    pipe, clip, full = load_pipeline(config), ("a red circle", 5), [0, 1, 2, 5, 8, 11]
    plain = sample(pipe, config, *clip, lambda _: None).frames
    (off,) = rehearsal._frame_errors(pipe, config, load_calibration(path), [Shown(clip, plain)], full)
    forecast = ForecastConfig(name="default", blend=0.5, calibration=str(path))
    schedule = ScheduleConfig(kind="explicit", steps=full, warmup=1, min_steps=0)
    with accelerated(pipe, replace(config, tap=forecast, schedule=schedule)):
        frames = sample(pipe, config, *clip, lambda _: None).frames
    assert off > 0
    assert -20 * math.log10(off) == pytest.approx(psnr(frames, plain), abs=1e-4)
    assert rehearsal._decibels(math.log(off)) == pytest.approx(psnr(frames, plain), abs=1e-4)


def test_moves_from_the_command_line(asked, own, capsys):
    """A few real runs: the schedule is of as many steps, begins with a full one, and the file says how it was found."""
    calibrate.run(asked())
    path = calibrate.run(asked("rehearse=auto", "moves=2", "seeds=[4,5,6]", "rehearsal_clips=3", "verbose=true"))
    again = load_calibration(path)
    assert [more["moves"] for more in again.about["rehearsed"]] == [2]
    assert again.best_steps(6)[0] == 0
    told = "".join(capsys.readouterr())
    assert "on which schedules are rehearsed, and up to 2 more for each of 1 speedups" in told


def test_a_rehearsal_sets_offloading_up_again(asked, monkeypatch):
    """Accelerate's hooks go over TAP's: those that `load_pipeline` has set up must go first."""
    pipe = load_pipeline(asked())
    events = []

    def offload(**_):
        pipe.transformer._hf_hook = object()
        events.append("on")

    def remove():
        del pipe.transformer._hf_hook
        events.append("off")

    monkeypatch.setattr("tapvideo.pipeline.resolve_device", lambda _: torch.device("cpu"))
    monkeypatch.setattr(pipe, "enable_model_cpu_offload", offload)
    monkeypatch.setattr(pipe, "remove_all_hooks", remove)
    offload()
    made = made_up(steps=12)
    final = sample(pipe, asked(), "a red circle", 3, lambda _: None).latents
    clips = [Known(("a red circle", 3), made.gram, final)]
    (moved,) = rehearsal._distances(pipe, asked("offload=model"), made, clips, list(range(11)))
    assert moved > 0
    assert events == ["on", "off", "on"]


def test_schedules_alone_can_be_rehearsed_again(asked, own, monkeypatch):
    path = calibrate.run(asked())
    first = load_calibration(path)
    monkeypatch.setattr(calibrate, "measure_sensitivity", lambda *_: pytest.fail("measured again"))
    tried = []
    monkeypatch.setattr(rehearsal, "candidates", lambda *_: tried.append(1) or [(0, 1, 2, 5, 8, 11)])
    again = load_calibration(calibrate.run(asked("rehearse=auto", "seeds=[4,5]", "rehearsal_clips=2")))
    assert tried
    assert again.best_steps(6) == [0, 1, 2, 5, 8, 11]
    assert torch.equal(again.gram, first.gram)
    assert torch.equal(again.sensitivity, first.sensitivity)
    assert again.about["made"] == first.about["made"]
    assert [seed for _, seed in again.about["rehearsed"][-1]["clips"]] == [4, 5]
    named = asked(f"rehearse={path}", "output=other.safetensors")
    assert calibrate._before(named) is not None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rehearse=auto"], "rehearse='auto': there is no calibration for .*; allowed: null"),
        (["rehearse=auto", "rehearsal_clips=0"], "rehearsal_clips=0, and rehearse='auto' does nothing else"),
        (["rehearse=OTHER"], "rehearse='.*' is not for .*; allowed: a calibration of such runs, or auto"),
        (["rehearse=/nowhere.safetensors"], "cannot be read"),
    ],
)
def test_what_cannot_be_rehearsed_again(asked, own, tmp_path, overrides, message):
    other = tmp_path / "other.safetensors"
    made_up(steps=12).save(other)
    with pytest.raises(ConfigError, match=message):
        calibrate.run(asked(*(o.replace("OTHER", str(other)) for o in overrides)))


def test_clips_of_a_rehearsal_are_spread_over_all_and_end_as_un_accelerated_ones_do(asked, own, monkeypatch):
    calibrate.run(asked())
    seen = []
    monkeypatch.setattr(calibrate, "rehearse", lambda pipe, config, found, known, *_, **__: seen.extend(known) or found)
    calibrate.run(asked("rehearse=auto", "seeds=[4,5,6,7]", "rehearsal_clips=2"))
    assert [known.clip[1] for known in seen] == [4, 6]
    config = asked()
    for shown in seen:
        made = sample(load_pipeline(config), config, *shown.clip, lambda _: None)
        assert torch.equal(shown.frames, made.frames)


def test_no_clip_of_a_rehearsal_is_one_that_weights_were_fitted_to(asked, own, monkeypatch):
    seen = []
    monkeypatch.setattr(calibrate, "rehearse", lambda pipe, config, found, known, *_, **__: seen.append(known) or found)
    path = calibrate.run(asked("seeds=[3,4]", "rehearsal_clips=2"))
    assert [known.clip[1] for known in seen[0]] == [5, 6]
    made = load_calibration(path).about["made"]
    assert [[seed for _, seed in made[key]] for key in ("clips", "rehearsed")] == [[3, 4], [5, 6]]
    calibrate.run(asked("rehearse=auto", "seeds=[4,9]", "rehearsal_clips=2"))
    assert [known.clip[1] for known in seen[1]] == [5, 9]


def test_no_clip_is_made_where_nothing_is_rehearsed(asked, own, monkeypatch):
    made = []
    plain = calibrate.sample
    monkeypatch.setattr(calibrate, "sample", lambda *args, **more: made.append(args[3]) or plain(*args, **more))
    calibrate.run(asked("speedups=[]"))
    assert made == [3]  # the watched one


def test_another_prompt_may_have_the_seed_that_one_has_seen():
    assert calibrate.unseen([("a", 1), ("b", 1), ("a", 2)], [("a", 1)]) == [("a", 2), ("b", 1), ("a", 3)]


def test_a_rehearsal_tries_what_there_is_and_what_needs_no_calibration():
    made = made_up(steps=18)
    plans = made.plans.clone()
    odd = [0, 1, 2, 3, 4, 5, 6, 7, 17]
    plans[9] = False
    plans[9, odd] = True
    tried = candidates(replace(made, plans=plans), 9)
    assert tried[0] == tuple(odd)
    for plan in (spread_plan(18, count=9), power_plan(18, count=9), power_plan(18, count=9, power=1.9)):
        assert tuple(i for i, kind in enumerate(plan) if kind is StepKind.FULL) in tried
