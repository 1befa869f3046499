"""On a GPU: the same promises. `python -m pytest -m gpu` runs these alone; without a GPU they are skipped."""

import json

import pytest
import torch
from calibrations import made_up

from tapvideo import ScheduleConfig, TapConfig, enable_tap
from tapvideo.cli import bench
from tapvideo.config import RecomputeConfig
from tapvideo.guard import HELD, Guard
from tapvideo.predictors import candidate_bank
from tapvideo.probe import forms, gram, proxy_error
from tapvideo.schedule import StepKind
from tapvideo.select import forecast, select_predictor

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_interval_one_equals_plain_bit_for_bit(wan, pipe, dtype):
    pipe.to("cuda")
    pipe.transformer.to(dtype)
    plain = wan.denoise(pipe)
    enable_tap(pipe, TapConfig(schedule=ScheduleConfig(interval=1)))
    assert torch.equal(wan.denoise(pipe), plain)


def test_forecasts_and_their_seconds(wan, pipe):
    pipe.to("cuda")
    tap = enable_tap(pipe, TapConfig())
    assert torch.isfinite(wan.denoise(pipe)).all()
    assert len(tap.summary().forecast_steps) == 9
    assert all(r.stack.seconds > 0 for r in tap.trace.records if r.kind is StepKind.FORECAST)


def test_choice_and_forecast_equal_the_cpus():
    torch.manual_seed(0)
    hidden, probe, *rest = torch.randn(8, 1, 512, 256)
    bank = candidate_bank(
        [10.0, 6.0, 2.0], 13.0, steps_ahead=3, family="taylor", orders=[0, 1, 2], lookback=4.0, spacing=1.0
    ).weights
    out, choices = {}, {}
    for device in ("cpu", "cuda"):
        anchors, residuals = [t.to(device) for t in rest[:3]], [t.to(device) for t in rest[3:]]
        error = proxy_error(gram(probe.to(device), anchors), forms(bank.to(device)), proxy="cosine")
        choice = select_predictor(error, choice="token")
        out[device] = forecast(hidden.to(device), residuals, bank.to(device)[choice]).cpu()
        choices[device] = choice.cpu()
    same = choices["cpu"] == choices["cuda"]
    assert same.float().mean() >= 0.999
    torch.testing.assert_close(out["cuda"][same], out["cpu"][same], atol=1e-5, rtol=1e-5)


def test_what_is_held_is_told_on_the_device(wan, pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(Guard, "trusts", lambda self, branch: False)
    made_up(steps=16).save(tmp_path / "made.safetensors")
    tap = enable_tap(pipe.to("cuda"), TapConfig(blend=0.5, guard=True, calibration=str(tmp_path / "made.safetensors")))
    assert torch.isfinite(wan.denoise(pipe, steps=16)).all()
    held = [r for r in tap.trace.records if r.labels == (HELD,)]
    assert {r.shares.device.type for r in held} == {"cuda"}  # or ranks could not gather them


def test_recomputing_every_token_is_a_full_step(wan, pipe):
    pipe.to("cuda")
    plain = wan.denoise(pipe)
    schedule = ScheduleConfig(kind="explicit", steps=[0, 1, 2, 6, 15], warmup=1, min_steps=0)
    enable_tap(pipe, TapConfig(schedule=schedule, recompute=RecomputeConfig(budget=1.0)))
    torch.testing.assert_close(wan.denoise(pipe), plain, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_forecast_is_within_twice_the_copy_at_the_size_of_wan_1_3b(capsys):
    """480 x 832 x 81 frames: 32,760 tokens of 1,536 numbers in bf16, 30 blocks of random weights."""
    bench.main(["--layers", "30", "--grid", "21", "30", "52", "--dtype", "bfloat16", "--repeats", "3"])
    timing = json.loads(capsys.readouterr().out.splitlines()[0])
    assert timing["forecast_stack"] <= 2 * timing["copy"]
    assert timing["recompute_step"] < 0.3 * timing["full_step"]
