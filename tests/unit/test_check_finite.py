"""Latents that are lost stop a run, whatever their sum; finite ones never do."""

import pytest
import torch

from tapvideo.sample import RunFailed, check_finite


@pytest.mark.parametrize("lost", [[float("nan")], [float("inf")], [float("-inf")], [float("inf"), float("-inf")]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_value_that_is_lost_stops_the_run(lost, dtype):
    latents = torch.zeros(2, 8, dtype=dtype)
    latents[1, : len(lost)] = torch.tensor(lost, dtype=dtype)
    with pytest.raises(RunFailed, match="after step 3"):
        check_finite(latents, 3, 50)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_values_whose_sum_is_not_go_on(dtype):
    check_finite(torch.full((2, 8), torch.finfo(dtype).max, dtype=dtype), 3, 50)
