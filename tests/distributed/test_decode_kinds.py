"""VAEs of all pipelines on several ranks: shared where frames come out as of one rank, and else decoded by one."""

import pytest
import torch
from pipelines_random import BUILDERS
from ranks import run_ranks

from tapvideo.parallel.config import ParallelConfig
from tapvideo.parallel.decode import plan_decode, sharded_decoder
from tapvideo.parallel.topology import build_topology

pytest.importorskip("distvae", reason="the extra `distvae` is not installed")
CPU = torch.device("cpu")
# model -> shape of latents of 16 x 8 rows and columns
LATENTS = {
    "flux": (1, 4, 16, 8),
    "cogview4": (1, 4, 16, 8),
    "qwen_image": (1, 4, 1, 16, 8),
    "mochi": (1, 12, 2, 16, 8),
    "hunyuan": (1, 4, 2, 16, 8),
    "hunyuan15": (1, 4, 2, 16, 8),
    "cogvideox_5b": (1, 4, 2, 16, 8),
    "ltx": (1, 8, 2, 16, 8),
    "skyreels": (1, 4, 2, 16, 8),
}


@torch.no_grad()
def decode(vae, shape):
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return vae.decode(latents).sample


def decode_on_rank(vae, shape, size):
    config = ParallelConfig()
    topology = build_topology(config, CPU)
    plan = plan_decode(config, topology, vae, height=size[0], width=size[1])
    with sharded_decoder(vae, plan, topology):
        return plan, decode(vae, shape) if plan.decodes else None


@pytest.mark.parametrize("model", LATENTS)
def test_frames_are_those_of_one_rank(model):
    torch.manual_seed(0)
    vae, shape = BUILDERS[model]().vae, LATENTS[model]
    expected = decode(vae, shape)
    for plan, frames in run_ranks(2, decode_on_rank, vae, shape, tuple(expected.shape[-2:])):
        if plan.how == "rows":
            assert plan.reason == f"2 ranks share {shape[-2]} latent rows"
        if plan.decodes:
            assert (frames - expected).abs().max() <= 1e-5, plan
