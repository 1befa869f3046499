"""Who decodes, decided without any rank to ask."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from diffusers import AutoencoderKLCogVideoX, AutoencoderKLWan
from torch import nn

from tapvideo.checks import ConfigError
from tapvideo.parallel.comm import Comm
from tapvideo.parallel.config import ParallelConfig
from tapvideo.parallel.decode import DecodePlan, plan_decode, rows_refusal, sharded_decoder
from tapvideo.parallel.topology import alone

SIZE = {"height": 480, "width": 832}
LARGE = {"height": 1088, "width": 1920}


@pytest.fixture
def vae():
    return AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    )


def of_ranks(size, rank=0):
    """The topology of a rank among those that make one clip."""
    comm = Comm()
    comm.size, comm.rank = size, rank
    return replace(alone(), sp=comm, clip=comm)


def plan(vae, mode, ranks=4, rank=0, **size):
    return plan_decode(ParallelConfig(vae=mode), of_ranks(ranks, rank), vae, **size or SIZE)


@pytest.fixture
def no_distvae(monkeypatch):
    monkeypatch.setitem(sys.modules, "distvae", None)


@pytest.mark.parametrize("mode", ["auto", "rank0", "distvae", "all"])
def test_one_rank_decodes_its_clip(vae, mode, no_distvae):
    assert plan(vae, mode, ranks=1, **LARGE) == DecodePlan(True, "whole", "one rank makes each clip")


def test_rank0_and_all(vae):
    assert plan(vae, "rank0", rank=0) == DecodePlan(True, "whole", "parallel.vae=rank0")
    assert plan(vae, "rank0", rank=3) == DecodePlan(False, "whole", "parallel.vae=rank0")
    assert plan(vae, "all", rank=3) == DecodePlan(True, "whole", "parallel.vae=all")


@pytest.mark.parametrize("mode", ["auto", "distvae"])
def test_ranks_share_rows_where_they_can(vae, mode):
    pytest.importorskip("distvae")
    assert plan(vae, mode, rank=3) == DecodePlan(True, "rows", "4 ranks share 60 latent rows")


def test_auto_without_distvae_is_the_writer(vae, no_distvae):
    reason = "one rank decodes: DistVAE is not installed (pip install 'tapvideo[distvae]')"
    assert plan(vae, "auto", rank=0) == DecodePlan(True, "whole", reason)
    assert plan(vae, "auto", rank=1) == DecodePlan(False, "whole", reason)


@pytest.mark.parametrize(("height", "how"), [(720, "whole"), (736, "tiles")])
def test_auto_takes_tiles_above_720p(vae, no_distvae, height, how):
    assert plan(vae, "auto", height=height, width=1280).how == how


def test_a_vae_without_tiles_is_decoded_whole(no_distvae):
    assert plan(SimpleNamespace(), "auto", **LARGE).how == "whole"


def test_distvae_that_is_not_possible_is_an_error(vae, no_distvae):
    with pytest.raises(ConfigError) as caught:
        plan(vae, "distvae")
    assert str(caught.value) == (
        "parallel.vae='distvae' is not possible here: DistVAE is not installed (pip install 'tapvideo[distvae]'); "
        "allowed: auto, rank0, all"
    )


@pytest.mark.parametrize(
    ("ranks", "height", "refusal"),
    [
        (60, 480, None),
        (61, 480, "61 ranks need 61 latent rows, and there are 60"),
        (2, 16, None),
        (2, 8, "2 ranks need 2 latent rows, and there are 1"),
    ],
)
def test_every_rank_needs_a_row(vae, ranks, height, refusal):
    pytest.importorskip("distvae")
    assert rows_refusal(vae, ranks, height=height, width=832) == refusal


def test_tiles_that_are_asked_for_are_not_shared(vae):
    pytest.importorskip("distvae")
    vae.enable_tiling()
    assert rows_refusal(vae, 2, **SIZE) == "vae_tiling cuts the clip into tiles"
    assert rows_refusal(vae, 2, height=256, width=256) is None  # one tile


def test_hooks_on_single_layers_are_not_carried_over(vae):
    pytest.importorskip("distvae")
    layer = vae.decoder.conv_in
    layer.forward = layer.forward  # as accelerate and diffusers put theirs in
    assert rows_refusal(vae, 2, **SIZE) == "single layers of the VAE are hooked, as offload=group does"


def test_unknown_decoders_are_named():
    pytest.importorskip("distvae")
    channels = (8, 8, 8, 8)
    vae = AutoencoderKLCogVideoX(block_out_channels=channels, layers_per_block=1, norm_num_groups=4)
    assert rows_refusal(vae, 2, **SIZE) == "DistVAE does not know the decoder of AutoencoderKLCogVideoX"


@pytest.mark.parametrize("before", [False, True])
def test_tiles_are_on_for_the_length_of_a_block(vae, before):
    vae.use_tiling = before
    with sharded_decoder(vae, DecodePlan(True, "tiles", ""), of_ranks(2)):
        assert vae.use_tiling
    assert vae.use_tiling == before


def test_a_whole_decode_touches_nothing():
    vae = nn.Module()
    with sharded_decoder(vae, DecodePlan(True, "whole", ""), of_ranks(2)):
        assert not list(vae.children())
