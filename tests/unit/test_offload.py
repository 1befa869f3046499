"""Where weights are between steps: on disk they cannot be, since every step reads some for the probe."""

import pytest
import torch
from diffusers.hooks import apply_group_offloading
from model_cases import CASES, denoise

from tapvideo import ScheduleConfig, TapConfig, enable_tap

CPU = torch.device("cpu")
TAP = TapConfig(schedule=ScheduleConfig(kind="explicit", steps=[0, 1, 2, 5, 8, 11], warmup=1, min_steps=0))


def offloaded(name, tmp_path, **how):
    case = next(case for case in CASES if case.name == name)
    transformer = case.transformer()
    apply_group_offloading(transformer, onload_device=CPU, offload_device=CPU, **how)
    return case, transformer


@pytest.mark.parametrize(
    "how", [{"offload_type": "leaf_level"}, {"offload_type": "block_level", "num_blocks_per_group": 1}]
)
@pytest.mark.parametrize("name", ["Wan 2.1 T2V", "FLUX.1", "LTX-Video T2V"])
def test_weights_on_disk_are_refused(name, how, tmp_path):
    case, transformer = offloaded(name, tmp_path, offload_to_disk_path=str(tmp_path), **how)
    enable_tap(transformer, TAP)
    with pytest.raises(ValueError, match="group offloading to disk"):
        denoise(case, transformer)


@pytest.mark.parametrize("changes", [{"family": "reuse"}, {"schedule": ScheduleConfig(interval=1)}])
def test_weights_on_disk_are_no_matter_where_no_probe_reads_them(changes, tmp_path):
    how = {"offload_type": "leaf_level", "offload_to_disk_path": str(tmp_path)}
    case, transformer = offloaded("Wan 2.1 T2V", tmp_path, **how)
    plain = denoise(case, transformer)
    enable_tap(transformer, TapConfig(**{"schedule": TAP.schedule, **changes}))
    assert torch.equal(denoise(case, transformer), plain) == ("schedule" in changes)


def test_weights_in_memory_are_not(tmp_path):
    case, transformer = offloaded("Wan 2.1 T2V", tmp_path, offload_type="leaf_level")
    tap = enable_tap(transformer, TAP)
    denoise(case, transformer)
    assert tap.summary().forecast_steps
