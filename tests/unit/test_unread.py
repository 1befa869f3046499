"""Text that no block will read is not projected, and nothing else changes."""

from contextlib import nullcontext

import pytest
import torch
from model_cases import CASES, denoise
from wan_random import denoise as denoise_pipe

from tapvideo import ScheduleConfig, TapConfig, enable_tap
from tapvideo.config import RecomputeConfig
from tapvideo.models.hook import TapHook
from tapvideo.models.unread import unread

WAN_LIKE = ["Wan 2.1 T2V", "Wan 2.1 I2V", "Wan 2.1 FLF2V", "Wan 2.2 TI2V", "SkyReels-V2 T2V", "SkyReels-V2 I2V"]
SCHEDULE = ScheduleConfig(kind="explicit", steps=[0, 1, 5, 9], warmup=1, min_steps=0)


def projections(transformer):
    """A list that grows with every projection of text."""
    seen = []
    projection = transformer.condition_embedder.text_embedder
    projection.register_forward_hook(lambda *_: seen.append(1))
    return seen


@pytest.mark.parametrize("name", WAN_LIKE)
def test_forecasts_without_the_text_are_those_with_it(name, monkeypatch):
    case = next(case for case in CASES if case.name == name)
    transformer = case.transformer()
    seen = projections(transformer)
    tap = enable_tap(transformer, TapConfig(schedule=SCHEDULE))
    without = denoise(case, transformer)
    assert len(seen) == 2 * 4
    tap.disable()
    monkeypatch.setattr(TapHook, "_without_text", lambda *_: nullcontext())
    enable_tap(transformer, TapConfig(schedule=SCHEDULE))
    assert torch.equal(denoise(case, transformer), without)
    assert len(seen) == 2 * 4 + 2 * 12


@pytest.mark.parametrize(
    "config",
    [
        TapConfig(schedule=SCHEDULE, recompute=RecomputeConfig(budget=0.2)),
        TapConfig(schedule=SCHEDULE, probe="block_output"),
    ],
)
def test_text_is_projected_where_a_block_runs(wan, config):
    pipe = wan.random_pipeline()
    seen = projections(pipe.transformer)
    enable_tap(pipe, config)
    assert denoise_pipe(pipe, steps=12).isfinite().all()
    assert len(seen) == 2 * 12


@pytest.mark.parametrize(("batches", "sizes"), [((1, 2), (4, 4)), ((1, 1), (4, 8))])
def test_another_size_in_the_midst_of_a_run_is_computed(wan, batches, sizes):
    """Its anchors are of no use, so blocks run, and they need the text."""
    transformer = wan.random_transformer()
    enable_tap(transformer, TapConfig(schedule=SCHEDULE))
    for step in range(12):
        batch, size = batches[step >= 3], sizes[step >= 3]
        latents, text = torch.randn(batch, 4, 2, 4, size), torch.randn(batch, 6, 8)
        where = transformer.cache_context("cond", step_index=step, num_inference_steps=12)
        with torch.no_grad(), where:
            made = transformer(latents, torch.full((batch,), 900.0 - step), text, return_dict=False)[0]
        assert made.isfinite().all()


def test_who_reads_it_after_all_notices(wan):
    """And the model has its own again, whatever happened."""
    transformer = wan.random_transformer()
    text = transformer.condition_embedder.text_embedder
    with unread(transformer, "condition_embedder.text_embedder", 32):
        made = transformer.condition_embedder.text_embedder(torch.ones(2, 6, 8))
    assert made.shape == (2, 6, 32)
    assert made.isnan().all()
    assert made.untyped_storage().nbytes() == 4
    with pytest.raises(KeyError), unread(transformer, "condition_embedder.text_embedder", 32):
        raise KeyError
    assert transformer.condition_embedder.text_embedder is text
