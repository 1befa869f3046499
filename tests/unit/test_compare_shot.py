"""A further draw of a shot begins at nearly the same noise, and leaves the pipeline as it was."""

from types import SimpleNamespace

import diffusers
import pytest
import torch

from tapvideo.compare.shot import Shot, nudge, nudged
from tapvideo.pipeline_kinds import KINDS


def noise(seed=1, shape=(1, 4, 8, 32, 32)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def nudge_of(draw, share=1e-3, seed=1):
    return nudge(noise(seed), torch.Generator().manual_seed(seed), draw, share)


@pytest.mark.parametrize("share", [1e-3, 0.1])
def test_noise_is_as_far_as_asked_and_of_the_same_spread(share):
    found = nudge_of(1, share)
    away = (found - noise()).std() / noise().std()
    assert away.item() == pytest.approx(share, rel=0.05)
    assert found.std().item() == pytest.approx(noise().std().item(), rel=0.01)


def test_draws_go_different_ways_and_are_the_same_again():
    assert torch.equal(nudge_of(2), nudge_of(2))
    moves = [(nudge_of(draw) - noise()).flatten() for draw in (1, 2)]
    assert abs(torch.nn.functional.cosine_similarity(*moves, dim=0).item()) < 0.03
    along = torch.nn.functional.cosine_similarity(moves[0], noise().flatten(), dim=0)
    assert abs(along.item()) < 0.03  # the noise itself, which the same generator may have made, is not added


def test_what_is_not_of_unit_spread_is_nudged_by_a_share_of_it():
    generator = torch.Generator().manual_seed(1)
    found = nudge(10 * noise(), generator, 1, 1e-3)
    assert (found - 10 * noise()).std().item() == pytest.approx(1e-2, rel=0.05)
    assert nudge(noise().bfloat16(), generator, 1, 1e-3).dtype == torch.bfloat16


def test_the_first_draw_is_left_alone():
    pipe = SimpleNamespace(prepare_latents=object())
    before = pipe.prepare_latents
    with nudged(pipe, Shot("a", 1), 1e-3):
        assert pipe.prepare_latents is before


class Pipe:
    """As diffusers' pipelines, of which some give out more than latents."""

    def __init__(self, more):
        self.more = more

    def prepare_latents(self, seed, *, scale):
        return (scale * noise(seed), *self.more) if self.more else scale * noise(seed)


@pytest.mark.parametrize("more", [(), ("image", None)])
def test_latents_are_nudged_and_what_comes_with_them_is_not(more):
    pipe = Pipe(more)
    with nudged(pipe, Shot("a", 7, 2), 1e-3):
        found = pipe.prepare_latents(7, scale=1.0)
    latents, *rest = found if more else (found,)
    assert tuple(rest) == more
    assert torch.equal(latents, nudge_of(2, seed=7))
    assert "prepare_latents" not in vars(pipe)


def test_a_method_of_the_object_is_put_back_though_a_run_fails():
    pipe = Pipe(())
    pipe.prepare_latents = own = lambda: noise()
    with pytest.raises(RuntimeError), nudged(pipe, Shot("a", 1, 1), 1e-3):
        raise RuntimeError
    assert pipe.prepare_latents is own


@pytest.mark.parametrize("name", KINDS)
def test_every_pipeline_prepares_latents(name):
    assert callable(getattr(diffusers, name).prepare_latents)
