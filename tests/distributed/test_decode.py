"""Decoding that ranks share makes the frames of one rank, and leaves the VAE as it was."""

import pytest
import torch
import torch.distributed as dist
from diffusers import AutoencoderKLWan
from ranks import run_ranks

from tapvideo.parallel.comm import PeerLost
from tapvideo.parallel.config import ParallelConfig
from tapvideo.parallel.decode import DecodePlan, plan_decode, rows_refusal, sharded_decoder
from tapvideo.parallel.topology import build_topology
from tapvideo.weights import ASSETS

CPU = torch.device("cpu")
COLUMNS = 5
ROWS = DecodePlan(True, "rows", "asked for by a test")
pytest.importorskip("distvae", reason="the extra `distvae` is not installed")


def random_vae(**changes):
    torch.manual_seed(0)
    config = {
        "base_dim": 4,
        "z_dim": 4,
        "dim_mult": [1, 2, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True],
        "latents_mean": [0.0] * 4,
        "latents_std": [1.0] * 4,
        "scale_factor_spatial": 4,
    }
    return AutoencoderKLWan(**config | changes).eval()


def folded_vae():
    """As Wan 2.2's: residual up blocks, and 2 x 2 pixels folded into channels."""
    return random_vae(is_residual=True, patch_size=2, in_channels=12, out_channels=12, scale_factor_spatial=8)


@torch.no_grad()
def decode(vae, latents):
    return vae.decode(latents).sample


def random_latents(vae, rows, frames=2, columns=COLUMNS):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, vae.config.z_dim, frames, rows, columns, generator=generator)


def decode_on_rank(vae, rows, parallel=None):
    """The plan on this rank, and its frames."""
    config = parallel or ParallelConfig()
    topology = build_topology(config, CPU)
    factor = vae.spatial_compression_ratio
    plan = plan_decode(config, topology, vae, height=rows * factor, width=COLUMNS * factor)
    with sharded_decoder(vae, plan, topology):
        return plan, decode(vae, random_latents(vae, rows)) if plan.decodes else None


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("rows", [3, 4, 5, 8])
def test_shared_rows_make_the_frames_of_one_rank(ranks, rows):
    vae = random_vae()
    expected = decode(vae, random_latents(vae, rows))
    for plan, frames in run_ranks(ranks, decode_on_rank, vae, rows):
        assert plan == DecodePlan(True, "rows", f"{ranks} ranks share {rows} latent rows")
        assert (frames - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("ranks", [2, 3])
def test_shared_rows_of_the_embedded_model_at_its_own_size(ranks):
    vae = AutoencoderKLWan.from_pretrained(ASSETS / "wan_tiny" / "vae").eval()
    expected = decode(vae, random_latents(vae, 8))
    for plan, frames in run_ranks(ranks, decode_on_rank, vae, 8):
        assert plan.how == "rows"
        assert (frames - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("mode", ["auto", "rank0"])
def test_the_writer_alone_decodes_where_rows_cannot_be_shared(mode):
    vae = folded_vae()
    expected = decode(vae, random_latents(vae, 5))
    found = run_ranks(2, decode_on_rank, vae, 5, ParallelConfig(vae=mode))
    assert torch.equal(found[0][1], expected)
    reasons = {"auto": "one rank decodes: 5 latent rows are no multiple of 2", "rank0": "parallel.vae=rank0"}
    assert found[1] == (DecodePlan(False, "whole", reasons[mode]), None)


def test_every_rank_decodes_alike():
    vae = random_vae()
    expected = decode(vae, random_latents(vae, 4))
    for plan, frames in run_ranks(2, decode_on_rank, vae, 4, ParallelConfig(vae="all")):
        assert plan == DecodePlan(True, "whole", "parallel.vae=all")
        assert torch.equal(frames, expected)


@pytest.mark.parametrize("parallel", [{"dp": 2}, {"cfg": 2}, {"cfg": 2, "sp": 2}], ids=str)
def test_all_ranks_of_a_clip_share_it(parallel):
    vae = random_vae()
    expected = decode(vae, random_latents(vae, 4))
    for plan, frames in run_ranks(4, decode_on_rank, vae, 4, ParallelConfig(**parallel)):
        assert plan.reason == f"{4 // parallel.get('dp', 1)} ranks share 4 latent rows"
        assert (frames - expected).abs().max() <= 1e-5


def clip_group(parallel):
    topology = build_topology(parallel, CPU)
    options = topology.clip.group._get_backend(CPU).options
    return dist.get_process_group_ranks(topology.clip.group), topology.clip.rank, options._timeout.total_seconds()


def test_ranks_of_a_clip_are_neighbours_and_wait_no_longer_than_the_config_says():
    found = run_ranks(8, clip_group, ParallelConfig(dp=2, cfg=2, timeout=77.0))
    assert found == [([0, 1, 2, 3], rank, 77.0) for rank in range(4)] + [
        ([4, 5, 6, 7], rank, 77.0) for rank in range(4)
    ]


def refusals(vae, most_rows):
    """What we say and whether DistVAE goes, by rows."""
    topology = build_topology(ParallelConfig(), CPU)
    found = []
    factor = vae.spatial_compression_ratio
    for rows in range(1, most_rows + 1):
        said = rows_refusal(vae, topology.clip.size, height=rows * factor, width=factor)
        with sharded_decoder(vae, ROWS, topology):
            try:
                decode(vae, random_latents(vae, rows, frames=1, columns=1))
                goes = True
            except ValueError:
                goes = False
        found.append((said, goes))
    return found


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("make", [random_vae, folded_vae])
def test_distvae_goes_where_we_say_so(ranks, make):
    """It finds out in the first decode, which is too late to let one rank do it."""
    found = run_ranks(ranks, refusals, make(), 7)[0]
    assert all((said is None) == goes for said, goes in found)
    assert {goes for _, goes in found} == {True, False}


def states(vae):
    modules = [(name, id(module)) for name, module in vae.named_modules()]
    return modules, [(name, id(p), p.data_ptr()) for name, p in vae.named_parameters()], set(vars(vae))


def restored(vae, fails):
    topology = build_topology(ParallelConfig(), CPU)
    latents = random_latents(vae, 4)
    before, expected = states(vae), decode(vae, latents)
    keys = set(vars(vae))
    inside = None
    try:
        with sharded_decoder(vae, ROWS, topology):
            inside = type(vae.decoder).__name__, {id(p) for p in vae.decoder.parameters()}
            decode(vae, latents)
            if fails:
                raise KeyError("of a test")
    except KeyError:
        assert fails
    after = states(vae)
    assert (after[:2], set(vars(vae))) == (before[:2], keys)
    return (
        inside[0],
        inside[1] == {id(p) for p in vae.decoder.parameters()},
        torch.equal(decode(vae, latents), expected),
    )


@pytest.mark.parametrize("fails", [False, True])
def test_the_vae_is_what_it_was(fails):
    """The same modules, weights and attributes, and the same frames bit for bit; no weight was copied meanwhile."""
    for name, shares_weights, same in run_ranks(2, restored, random_vae(), fails):
        assert (name, shares_weights, same) == ("WanDecoderAdapter", True, True)


def lose_a_peer(vae):
    topology = build_topology(ParallelConfig(), CPU)
    text = None
    if dist.get_rank() == 0:
        with pytest.raises(PeerLost) as caught, sharded_decoder(vae, ROWS, topology):
            decode(vae, random_latents(vae, 4))
        text = str(caught.value)
    dist.destroy_process_group()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # what a test's rank ends on
    return text


def test_a_lost_peer_is_told_as_such():
    assert run_ranks(2, lose_a_peer, random_vae())[0].startswith("another rank of this run does not answer (")


def pass_on(vae, error):
    topology = build_topology(ParallelConfig(), CPU)
    with pytest.raises(RuntimeError) as caught, sharded_decoder(vae, ROWS, topology):
        raise error
    return type(caught.value), str(caught.value)


@pytest.mark.parametrize("error", [PeerLost("gloo: told before"), RuntimeError("out of memory")])
def test_other_errors_are_passed_on_as_they_are(error):
    assert run_ranks(2, pass_on, random_vae(), error) == [(type(error), str(error))] * 2
