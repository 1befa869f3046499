"""Proxy errors from inner products against materialised forecasts."""

import pytest
import torch

from tapvideo.predictors import candidate_bank
from tapvideo.probe import forms, gram, proxy_error

BANK = candidate_bank(
    [10.0, 6.0, 2.0], 13.0, steps_ahead=3, family="taylor", orders=[0, 1, 2], lookback=4.0, spacing=1.0
).weights


def smooth_features(dtype=torch.float32, tokens=400, dim=96):
    """A probe near its anchors, as on a real trajectory."""
    generator = torch.Generator().manual_seed(0)
    base, slope, bend = torch.randn(3, 2, tokens, dim, generator=generator)
    features = [base + 0.2 * t * slope + 0.04 * t**2 * bend for t in (0.3, 0.0, -0.4, -0.8)]
    return features[0].to(dtype), [f.to(dtype) for f in features[1:]]


def materialised(probe, anchors, bank, proxy):
    probe, stacked = probe.double(), torch.stack([a.double() for a in anchors])
    forecasts = torch.einsum("pk,kbnd->pbnd", bank.double(), stacked)
    if proxy == "l2":
        error = (forecasts - probe).norm(dim=-1) / probe.norm(dim=-1)
    else:
        error = 1 - torch.cosine_similarity(forecasts, probe[None].expand_as(forecasts), dim=-1)
    return error.movedim(0, -1)


@pytest.mark.parametrize("proxy", ["cosine", "l2"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-5)])
def test_proxy_error_equals_materialised(proxy, dtype, tolerance):
    """Against fp64 on the same (already rounded) features, so bf16 storage is held to the fp32 bound too."""
    probe, anchors = smooth_features(dtype)
    error = proxy_error(gram(probe, anchors), forms(BANK), proxy=proxy)
    expected = materialised(probe, anchors, BANK, proxy)
    torch.testing.assert_close(error.double(), expected, atol=tolerance, rtol=1e-3)
    assert (error.argmin(-1) == expected.argmin(-1)).float().mean() >= 0.999


def test_proxy_error_resolves_tiny_cosine_distances():
    """1 - cos of vectors 1e-5 apart is about 1e-10, far below fp32's spacing at 1."""
    probe, _ = smooth_features()
    anchors = [probe + 1e-5 * torch.randn(probe.shape, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    error = proxy_error(gram(probe, anchors), forms(BANK), proxy="cosine")
    expected = materialised(probe, anchors, BANK, "cosine")
    torch.testing.assert_close(error.double(), expected, atol=0, rtol=2e-2)


@pytest.mark.parametrize("proxy", ["cosine", "l2"])
def test_proxy_error_holds_for_weights_that_do_not_sum_to_one(proxy):
    probe, anchors = smooth_features()
    bank = torch.tensor([[0.5, 0.0, 0.0], [2.0, -0.5, 0.1], [-1.0, 0.0, 0.0]])
    error = proxy_error(gram(probe, anchors), forms(bank), proxy=proxy)
    torch.testing.assert_close(error.double(), materialised(probe, anchors, bank, proxy), atol=1e-5, rtol=1e-4)


def test_proxy_error_is_zero_for_an_exact_forecast():
    probe, anchors = smooth_features()
    error = proxy_error(gram(anchors[0], anchors), forms(torch.tensor([[1.0, 0.0, 0.0]])), proxy="cosine")
    assert error.max() < 1e-6
    assert probe.shape == anchors[0].shape


def test_proxy_error_of_zero_probe_is_finite():
    anchors = [torch.zeros(1, 4, 8)] * 3
    for proxy in ("cosine", "l2"):
        assert torch.isfinite(proxy_error(gram(torch.zeros(1, 4, 8), anchors), forms(BANK), proxy=proxy)).all()


def test_gram_does_not_depend_on_the_chunks():
    probe, anchors = smooth_features(tokens=700, dim=1024)  # several chunks
    row = torch.cat([gram(probe[:, i : i + 1], [a[:, i : i + 1] for a in anchors]) for i in (0, 127, 128, 699)], dim=1)
    torch.testing.assert_close(gram(probe, anchors)[:, [0, 127, 128, 699]], row, rtol=1e-5, atol=1e-4)
