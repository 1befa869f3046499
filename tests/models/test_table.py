"""Every architecture keeps every promise, or refuses in one line: `python -m pytest tests/models` prints the table."""

from dataclasses import replace

import pytest
import torch
from diffusers.hooks import apply_group_offloading
from diffusers.hooks.group_offloading import ModuleGroup
from model_cases import CASES, STEPS, Case, denoise
from peft import LoraConfig
from ranks import run_ranks
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

from tapvideo import ScheduleConfig, TapConfig, enable_tap
from tapvideo.config import RecomputeConfig
from tapvideo.models import compile_blocks
from tapvideo.parallel.config import ParallelConfig
from tapvideo.parallel.topology import build_topology

FULL = [0, 1, 2, 5, 8, 11]
SCHEDULE = ScheduleConfig(kind="explicit", steps=FULL, warmup=1, min_steps=0)
TAP = TapConfig(schedule=SCHEDULE)
EVERY_STEP = TapConfig(schedule=ScheduleConfig(interval=1))
CPU = torch.device("cpu")


def blocks_of(case, transformer):
    return [block for name in case.block_lists for block in getattr(transformer, name)]


def processors_of(transformer):
    return [module.processor for module in transformer.modules() if hasattr(module, "processor")]


def run(case, config, parallel=None):
    transformer = case.transformer()
    enable_tap(transformer, config, build_topology(parallel or ParallelConfig(), CPU))
    return denoise(case, transformer)


def accelerated_is_plain_at_interval_one(case, transformer):
    """Whatever was done to the transformer before, TAP with every step full changes no bit, and forecasts run."""
    plain = denoise(case, transformer)
    tap = enable_tap(transformer, EVERY_STEP)
    assert torch.equal(denoise(case, transformer), plain)
    tap.disable()
    tap = enable_tap(transformer, TAP)
    forecast = denoise(case, transformer)
    assert torch.isfinite(forecast).all()
    assert not torch.equal(forecast, plain)
    assert len(tap.summary().forecast_steps) == STEPS - len(FULL)
    tap.disable()
    assert torch.equal(denoise(case, transformer), plain)
    return plain


def interval_1(case):
    accelerated_is_plain_at_interval_one(case, case.transformer())


def disable(case):
    transformer = case.transformer()
    plain, processors = denoise(case, transformer), processors_of(transformer)
    tap = enable_tap(transformer, replace(TAP, recompute=RecomputeConfig(budget=0.3)))
    assert not torch.equal(denoise(case, transformer), plain)
    tap.disable()
    assert torch.equal(denoise(case, transformer), plain)
    assert processors_of(transformer) == processors


def probe(case):
    """The probe is what block 0's attention gets, bit for bit; a forecast step runs no block."""
    transformer, seen, probes, ran = case.transformer(), {}, {}, []
    tap = enable_tap(transformer, TAP)
    hook = transformer._diffusers_hook.get_hook("tapvideo")
    modulated_input = hook.adapter.modulated_input

    def where():
        context, _ = hook.stack.call
        return context.step, context.branch

    def see_attention(_, args, kwargs):
        seen[where()] = args[0] if args else kwargs["hidden_states"]

    def see_probe(block, stream):
        made = modulated_input(block, stream)
        probes.setdefault(where(), made)  # the video's; a companion's comes next
        return made

    hook.adapter.modulated_input = see_probe
    case.first_attention(transformer).register_forward_pre_hook(see_attention, with_kwargs=True)
    for block in blocks_of(case, transformer):
        block.register_forward_pre_hook(lambda *_: ran.append(where()[0]))
    denoise(case, transformer)
    assert sorted(set(ran)) == FULL
    assert [step for step, _ in seen] == [step for step in FULL for _ in case.branches]
    anchors = [key for key in seen if key[0] != FULL[-1]]  # no forecast comes after the last full step
    assert all(torch.equal(seen[key], probes[key]) for key in anchors)
    assert tap.summary().full_steps == FULL


def recompute_all(case):
    full = denoise(case, case.transformer())
    found = run(case, replace(TAP, recompute=RecomputeConfig(budget=1.0)))
    assert (found - full).abs().max() <= 1e-5
    some = run(case, replace(TAP, recompute=RecomputeConfig(budget=0.3)))
    assert (some - full).abs().max() > 1e-5


def ranks(case, number):
    config = replace(TAP, recompute=RecomputeConfig(budget=0.3))
    expected = run(case, config)
    found = run_ranks(number, run, case, config)
    assert all((latents - expected).abs().max() <= 1e-5 for latents in found)
    assert all(torch.equal(latents, found[0]) for latents in found)


def two_ranks(case):
    ranks(case, 2)


def three_ranks(case):
    ranks(case, 3)


def guidance(case):
    """Two branches on two ranks; a model that is called once for both has nothing to share."""
    if case.branches != ("cond", "uncond"):
        with pytest.raises(AssertionError, match=r"allowed.*parallel\.cfg=1"):
            run_ranks(2, run, case, TAP, ParallelConfig(cfg=2))
        return "parallel.cfg=2: the model is called once a step, with both branches or with guidance embedded"
    expected = run(case, TAP)
    found = run_ranks(2, run, case, TAP, ParallelConfig(cfg=2))
    assert all((latents - expected).abs().max() <= 1e-5 for latents in found)
    return None


def lora(case):
    transformer = case.transformer()
    plain = denoise(case, transformer)
    torch.manual_seed(7)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v"], init_lora_weights=False)
    transformer.add_adapter(config, adapter_name="style")
    with_lora = accelerated_is_plain_at_interval_one(case, transformer)
    assert (with_lora - plain).abs().max() > 1e-4
    transformer.disable_adapters()
    assert torch.equal(denoise(case, transformer), plain)


def offload(case, monkeypatch):
    """A forecast step brings no block's weights back."""
    transformer = case.transformer()
    expected = run(case, TAP)
    enable_tap(transformer, TAP)
    apply_group_offloading(transformer, onload_device=CPU, offload_device=CPU, offload_type="leaf_level")
    hook, loads = transformer._diffusers_hook.get_hook("tapvideo"), []
    weights = {id(m) for block in blocks_of(case, transformer) for m in block.modules()}

    def onload(group):
        if any(id(m) in weights for m in group.modules) and hook.stack.call:
            loads.append(hook.stack.call[0].step)

    monkeypatch.setattr(ModuleGroup, "onload_", onload)
    monkeypatch.setattr(ModuleGroup, "offload_", lambda group: None)
    assert torch.equal(denoise(case, transformer), expected)
    assert sorted(set(loads)) == FULL


def compiled(case):
    """Whole graphs, and none made anew by TAP or from step to step."""
    transformer, graphs = case.transformer(), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    expected = run(case, TAP)
    compile_blocks(transformer, fullgraph=True, backend=backend)
    plain = denoise(case, transformer)
    made = len(graphs)
    assert made
    enable_tap(transformer, TAP)
    assert (denoise(case, transformer) - expected).abs().max() <= 1e-5
    assert len(graphs) == made
    assert torch.isfinite(plain).all()


def int8(case):
    transformer = case.transformer()
    plain = denoise(case, transformer)
    quantize_(transformer, Int8WeightOnlyConfig())
    assert 0 < (accelerated_is_plain_at_interval_one(case, transformer) - plain).abs().max()


def fp8(case):
    transformer = case.transformer()
    plain = denoise(case, transformer)
    quantize_(transformer, Float8WeightOnlyConfig())
    assert 0 < (accelerated_is_plain_at_interval_one(case, transformer) - plain).abs().max()


def bfloat16(case):
    accelerated_is_plain_at_interval_one(case, case.transformer().to(torch.bfloat16))


CHECKS = {
    "interval 1": interval_1,
    "disable": disable,
    "probe": probe,
    "recompute all": recompute_all,
    "P = 2": two_ranks,
    "P = 3": three_ranks,
    "CFG on 2 ranks": guidance,
    "LoRA": lora,
    "offload": offload,
    "compile": compiled,
    "int8": int8,
    "fp8": fp8,
    "bf16": bfloat16,
}


@pytest.mark.parametrize("column", CHECKS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_table(case: Case, column: str, record_property, request):
    record_property("row", case.name)
    record_property("column", column)
    if case.refused:
        with pytest.raises(ValueError, match=case.refused):
            enable_tap(case.transformer())
        record_property("cell", case.refused)
        return
    check = CHECKS[column]
    extra = [request.getfixturevalue("monkeypatch")] if check is offload else []
    reason = check(case, *extra)
    record_property("cell", reason or "ok")
