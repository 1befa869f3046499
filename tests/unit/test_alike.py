"""What somebody puts onto the embeddings for one guidance branch alone is not shared with the other."""

from functools import partial

import pytest
import torch
from peft import LoraConfig

from tapvideo import ScheduleConfig, TapConfig, enable_tap
from tapvideo.models.alike import Alike, LastCall, Shared

SCHEDULE = ScheduleConfig(kind="explicit", steps=[0, 1, 5, 9], warmup=1, min_steps=0)


@pytest.mark.parametrize("place", ["patch_embedding", "condition_embedder.time_embedder.linear_1"])
def test_what_one_branch_alone_is_given_counts_on_forecast_steps(wan, monkeypatch, place):
    made = []
    for _ in range(2):
        transformer = wan.random_transformer()
        enable_tap(transformer, TapConfig(schedule=SCHEDULE))
        chance, outputs = torch.Generator().manual_seed(0), []
        for step in range(12):
            latents, now = torch.randn(1, 4, 2, 4, 4, generator=chance), torch.full((1,), 900.0 - step)

            def run(branch, step=step, latents=latents, now=now, model=transformer):
                where = model.cache_context(branch, step_index=step, num_inference_steps=12)
                with torch.no_grad(), where:
                    return model(latents, now, torch.full((1, 6, 8), float(len(branch))), return_dict=False)[0]

            outputs.append(run("cond"))
            handle = transformer.get_submodule(place).register_forward_hook(lambda module, args, output: output + 0.5)
            outputs.append(run("uncond"))
            handle.remove()
        made.append(torch.stack(outputs))
        monkeypatch.setattr(LastCall, "is_repeated", lambda *_: False)
        monkeypatch.setattr(Shared, "forward", lambda self, *args, **kwargs: self.original(*args, **kwargs))
    assert torch.equal(*made)


def test_a_forward_in_anothers_place_in_memory_is_another(wan):
    transformer, given = wan.random_transformer(), {"timestep": torch.ones(1)}
    alike, layer = Alike(("patch_embedding",)), transformer.patch_embedding
    for _ in range(3):
        layer.forward = partial(torch.add, 1)
        assert not alike.is_repeated(transformer, given)
        del layer.forward  # before the next one comes


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.register_forward_hook(lambda *_: None),
        lambda layer: layer.register_forward_pre_hook(lambda *_: None),
        lambda layer: setattr(layer, "forward", lambda given: given),
        lambda layer: layer.enable_adapters(enabled=False),
        lambda layer: layer.set_adapter("other"),
        lambda layer: layer.set_scale("default", 0.5),
    ],
    ids="hook pre-hook forward lora-off another-lora lora-scale".split(),
)
def test_what_is_put_on_between_two_calls_is_seen(wan, change):
    transformer, place = wan.random_transformer(), "condition_embedder.time_embedder.linear_1"
    for name in ("default", "other"):
        transformer.add_adapter(LoraConfig(r=2, target_modules=[place]), adapter_name=name)
    transformer.set_adapter("default")
    alike, given = Alike(("patch_embedding", "condition_embedder")), {"timestep": torch.ones(1)}
    assert [alike.is_repeated(transformer, given) for _ in range(2)] == [False, True]
    change(transformer.get_submodule(place))
    assert [alike.is_repeated(transformer, given) for _ in range(2)] == [False, True]
