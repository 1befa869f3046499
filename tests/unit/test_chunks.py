"""Tensors worked through in pieces."""

import pytest
import torch

from tapvideo import chunks
from tapvideo.chunks import by_pieces, exact_fp32, is_one_piece
from tapvideo.probe import forms, gram, proxy_error
from tapvideo.select import forecast


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_and_the_whole_make_the_same(dtype, monkeypatch):
    torch.manual_seed(0)
    hidden, *residuals = torch.randn(4, 2, 30, 16).to(dtype)
    weights = torch.randn(2, 30, 3)
    candidates = forms(torch.randn(5, 3))

    def results():
        assert forecast(hidden, residuals, weights).dtype is dtype
        error = proxy_error(gram(hidden, residuals), candidates, proxy="cosine")
        return forecast(hidden, residuals, weights), forecast(hidden, residuals, weights[:1, :1]), error

    assert is_one_piece(hidden)
    whole = results()
    monkeypatch.setattr(chunks, "_CPU_ELEMENTS", 7 * 16)
    assert not is_one_piece(hidden)
    for one, other in zip(whole[:2], results()[:2], strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(whole[2], results()[2], rtol=1e-5, atol=1e-6)


def test_pieces_are_no_larger_than_they_may_be(monkeypatch):
    monkeypatch.setattr(chunks, "_CPU_ELEMENTS", 7 * 16)
    sizes = []

    def seen(part, scale):
        sizes.append((part.shape, scale.shape))
        return part * scale

    hidden = torch.randn(2, 30, 16)
    assert torch.equal(by_pieces(seen, hidden, torch.full((1, 1, 16), 2.0)), 2 * hidden)
    assert {shape for shapes in sizes for shape in shapes} == {(7, 16), (2, 16)}
    assert len(sizes) == 2 * 5


def test_exact_fp32_turns_autocast_off_and_on_again():
    device = torch.device("cpu")
    with torch.autocast("cpu", torch.bfloat16):
        with exact_fp32(device):
            assert (torch.randn(4, 4) @ torch.randn(4, 4)).dtype is torch.float32
        assert (torch.randn(4, 4) @ torch.randn(4, 4)).dtype is torch.bfloat16
