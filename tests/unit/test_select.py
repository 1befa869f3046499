"""Choice and forecast."""

import torch

from tapvideo.select import forecast, select_predictor


def test_select_predictor_takes_the_least_error_of_every_token():
    error = torch.tensor([[[0.3, 0.1, 0.2], [0.0, 0.5, 0.5]]])
    assert select_predictor(error, choice="token").tolist() == [[1, 0]]


def test_select_predictor_gives_ties_to_the_lowest_index():
    assert (select_predictor(torch.full((2, 5, 7), 0.25), choice="token") == 0).all()


def test_select_predictor_per_sample_minimises_the_mean():
    error = torch.tensor([[[0.0, 0.4], [0.9, 0.4]], [[0.0, 0.4], [0.1, 0.4]]])
    assert select_predictor(error, choice="sample").tolist() == [[1, 1], [0, 0]]


def test_forecast_sums_weighted_residuals_per_token():
    torch.manual_seed(0)
    hidden, *residuals = torch.randn(4, 2, 300, 512)
    weights = torch.randn(2, 300, 3)
    expected = hidden + torch.einsum("bnk,kbnd->bnd", weights, torch.stack(residuals))
    torch.testing.assert_close(forecast(hidden, residuals, weights), expected)


def test_forecast_broadcasts_one_predictor():
    torch.manual_seed(0)
    hidden, *residuals = torch.randn(4, 2, 300, 512)
    out = forecast(hidden, residuals, torch.tensor([[[1.0, 0.5, -0.5]]]))
    torch.testing.assert_close(out, hidden + residuals[0] + 0.5 * residuals[1] - 0.5 * residuals[2])


def test_forecast_keeps_the_dtype_and_sums_in_fp32():
    torch.manual_seed(0)
    hidden, *residuals = (100 * torch.randn(4, 1, 64, 32)).bfloat16()
    weights = torch.tensor([[[3.0, -3.0, 1.0]]])
    exact = hidden.double() + sum(w * r.double() for w, r in zip([3.0, -3.0, 1.0], residuals, strict=True))
    out = forecast(hidden, residuals, weights)
    assert out.dtype is torch.bfloat16
    torch.testing.assert_close(out.double(), exact, rtol=2**-8, atol=1e-3)
