"""Who holds which tokens: each of them once, evenly, and evenly too of those that will be recomputed."""

import math

import pytest
import torch

from tapvideo.parallel.layout import LAYOUTS, make_layout

WAN_720P = (21, 45, 80)
CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("grid", [(1, 1, 1), (1, 1, 7), (2, 3, 4), (5, 5, 7), (3, 1, 64), (4, 8, 8)])
def test_every_token_has_one_owner_and_shares_are_even(kind, grid):
    """For any count of tokens and any number of ranks up to it."""
    tokens = math.prod(grid)
    for ranks in {1, 2, 3, 4, 5, 7, 8, tokens // 2, tokens - 1, tokens} & set(range(1, tokens + 1)):
        layout = make_layout(grid, ranks, kind=kind, device=CPU)
        assert torch.equal(layout.order.sort().values, torch.arange(tokens))
        assert sum(layout.sizes) == tokens
        assert max(layout.sizes) - min(layout.sizes) <= 1
        assert len(layout.shards) == ranks
        assert all(torch.equal(shard, shard.sort().values) for shard in layout.shards)


def test_owners_in_closed_form():
    """Two frames of two rows of three columns, on two ranks and three."""
    shards = {
        kind: [shard.tolist() for shard in make_layout((2, 2, 3), 2, kind=kind, device=CPU).shards] for kind in LAYOUTS
    }
    assert shards["contiguous"] == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert shards["strided"] == [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]]
    # frame + row + column: 0 1 2 / 1 2 3 // 1 2 3 / 2 3 4
    assert shards["diagonal"] == [[0, 2, 4, 7, 9, 11], [1, 3, 5, 6, 8, 10]]
    third = [shard.tolist() for shard in make_layout((2, 2, 3), 3, kind="diagonal", device=CPU).shards]
    assert third == [[0, 5, 8, 10], [1, 3, 6, 11], [2, 4, 7, 9]]


@pytest.mark.parametrize("kind", LAYOUTS)
def test_gathered_rows_come_back_in_order(kind):
    layout = make_layout((5, 5, 7), 4, kind=kind, device=CPU)
    rows = torch.arange(175)[:, None].expand(175, 3)
    assert torch.equal(layout.in_order(torch.cat([rows[shard] for shard in layout.shards])), rows)


def test_more_ranks_than_tokens_are_refused():
    with pytest.raises(ValueError, match="13 ranks cannot share 12 tokens"):
        make_layout((2, 2, 3), 13, kind="diagonal", device=CPU)


def test_unknown_layout_is_refused():
    with pytest.raises(ValueError, match="layout 'zigzag' is not known; allowed: diagonal, strided, contiguous"):
        make_layout((2, 2, 3), 2, kind="zigzag", device=CPU)


def moving_blob(share):
    """A disc that crosses the picture, of a size that makes it this share of all tokens."""
    frames, rows, columns = WAN_720P
    frame, row, column = (axis.float() for axis in torch.meshgrid(*map(torch.arange, WAN_720P), indexing="ij"))
    across = frame / (frames - 1)
    distance = (row - rows * (0.3 + 0.4 * across)) ** 2 + (column - columns * (0.2 + 0.6 * across)) ** 2
    return nearest(distance, share)


def pole(share):
    """Some whole columns, four or a multiple of it, that stand still: `position % ranks` is their own number."""
    _, _, columns = WAN_720P
    wide = max(4, 4 * round(share * columns / 4))
    column = torch.arange(columns).expand(WAN_720P)
    return ((column >= 32) & (column < 32 + wide)).flatten()


def thin_pole(share):
    """Every eighth column."""
    column = torch.arange(WAN_720P[2]).expand(WAN_720P)
    return nearest(column % 8 + column / 1000, share)


def scene_cut(share):
    """The frames after a cut."""
    frame = torch.arange(WAN_720P[0])[:, None, None].expand(WAN_720P)
    return nearest((frame - 12.0).abs() + (frame < 12) * 100, share)


def corner(share):
    """A corner of every frame."""
    _, row, column = torch.meshgrid(*map(torch.arange, WAN_720P), indexing="ij")
    return nearest(torch.maximum(row / 45, column / 80), share)


def at_random(share):
    return nearest(torch.rand(WAN_720P, generator=torch.Generator().manual_seed(0)), share)


def nearest(distance, share):
    """The share of tokens that is nearest."""
    mask = torch.zeros(distance.numel(), dtype=torch.bool)
    mask[distance.flatten().argsort(stable=True)[: int(share * distance.numel())]] = True
    return mask


def imbalance(mask, ranks, kind):
    """Tokens of the mask on the rank that has most of them, over the mean."""
    layout = make_layout(WAN_720P, ranks, kind=kind, device=CPU)
    counts = torch.tensor([int(mask[shard].sum()) for shard in layout.shards], dtype=torch.float64)
    return float(counts.max() / counts.mean())


MASKS = (moving_blob, pole, thin_pole, scene_cut, corner, at_random)


@pytest.mark.parametrize("share", [0.05, 0.10, 0.25])
@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: mask.__name__)
def test_diagonal_layout_balances_what_is_recomputed(mask, share):
    found = mask(share)
    assert found.float().mean() == pytest.approx(share, abs=0.011)
    for ranks in (2, 4, 8):
        assert imbalance(found, ranks, "diagonal") <= 1.1


def test_other_layouts_do_not():
    """What the diagonal is for: slices give all of it to one rank, and strides line up with columns."""
    assert imbalance(scene_cut(0.10), 8, "contiguous") > 4
    assert imbalance(moving_blob(0.10), 8, "contiguous") > 1.1
    assert imbalance(pole(0.05), 8, "strided") == 2.0
    assert imbalance(thin_pole(0.10), 8, "strided") > 4
