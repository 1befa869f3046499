"""P ranks trust and distrust what one rank does, whether they share tokens, branches or both."""

import pytest
import torch
from calibrations import made_up
from ranks import run_ranks
from wan_random import denoise, random_pipeline

from tapvideo import ScheduleConfig, TapConfig, enable_tap
from tapvideo.parallel.config import ParallelConfig
from tapvideo.parallel.topology import build_topology
from tapvideo.schedule import StepKind

STEPS = 16
SIZE = {"frames": 17, "size": 80, "width": 112}  # 175 tokens


def run(path, family, choice, parallel):
    """Final latents, and what every forecast step did."""
    topology = build_topology(parallel, torch.device("cpu"))
    pipe = random_pipeline(num_attention_heads=4, attention_head_dim=12)
    how = TapConfig(
        calibration=path, family=family, blend=0.5, guard=True, choice=choice, schedule=ScheduleConfig(interval=4)
    )
    tap = enable_tap(pipe, how, topology)
    latents = denoise(pipe, steps=STEPS, **SIZE)
    tap.gather_trace()
    forecasts = [r for r in tap.trace.records if r.kind is StepKind.FORECAST]
    return latents, {(r.branch, r.step): r.labels for r in forecasts}


@pytest.mark.parametrize("mesh", [{"sp": 2}, {"sp": 3}, {"cfg": 2, "sp": 1}, {"cfg": 2, "sp": 2}], ids=str)
@pytest.mark.parametrize(("family", "choice"), [("calibrated", "token"), ("taylor", "sample")])
def test_ranks_hold_what_one_rank_holds(tmp_path, mesh, family, choice):
    path = str(tmp_path / "made.safetensors")
    made_up(steps=STEPS).save(tmp_path / "made.safetensors")
    latents, alone = run(path, family, choice, ParallelConfig())
    if family == "calibrated":
        assert {("held",), ("calibrated",)} == set(alone.values())
    ranks = mesh["sp"] * mesh.get("cfg", 1)
    for found, labels in run_ranks(ranks, run, path, family, choice, ParallelConfig(**mesh)):
        torch.testing.assert_close(found, latents, rtol=0, atol=1e-5)
        assert labels.items() <= alone.items()
        assert len(labels) * mesh.get("cfg", 1) == len(alone)
