"""On a GPU: the same promises. `python -m pytest -m gpu` runs these alone; without a GPU they are skipped."""

import pytest
import torch

from tapvideo import ScheduleConfig, TapConfig, enable_tap
from tapvideo.predictors import candidate_bank
from tapvideo.probe import gram, proxy_error
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
        error = proxy_error(gram(probe.to(device), anchors), bank.to(device), proxy="cosine")
        choice, _ = select_predictor(error, choice="token")
        out[device] = forecast(hidden.to(device), residuals, bank.to(device)[choice]).cpu()
        choices[device] = choice.cpu()
    same = choices["cpu"] == choices["cuda"]
    assert same.float().mean() >= 0.999
    torch.testing.assert_close(out["cuda"][same], out["cpu"][same], atol=1e-5, rtol=1e-5)
