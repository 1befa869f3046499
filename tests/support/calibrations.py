"""Calibrations of made-up residuals, for tests."""

import torch

from tapvideo.calibration.file import Calibration, calibrate

BRANCHES = ("cond", "uncond")


def made_up(steps=12, branches=BRANCHES, seed=0, guidance=5.0, starts=(0,), **about) -> Calibration:
    """A calibration of residuals on a smooth path; `starts` of transformers, `about` beside the facts of a Wan run."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.linspace(0, 1, steps, dtype=torch.float64)
    basis = torch.stack([torch.ones_like(time), time, torch.exp(-8 * time), torch.sin(5 * time)], 1)
    paths = basis @ torch.randn(len(branches), 4, 30, dtype=torch.float64, generator=generator)
    noise = torch.randn(len(branches), steps, 30, dtype=torch.float64, generator=generator)
    flat = (paths + 0.01 * noise).flatten(0, 1)
    mix = torch.tensor([guidance, 1 - guidance] if branches == BRANCHES else [1.0] * len(branches)).double()
    sensitivity = torch.linspace(2, 1, steps, dtype=torch.float64)
    facts = {
        "weights": "org/wan", "scheduler": "UniPCMultistepScheduler", "flow_shift": 3.0, "steps": steps,
        "guidance": guidance,
    }  # fmt: skip
    mixes = mix.expand(len(starts), -1).contiguous()
    return calibrate(branches, flat @ flat.T, mixes, sensitivity, facts | about, starts)
