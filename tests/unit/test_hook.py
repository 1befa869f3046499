"""The diffusers hook on a bare transformer: contexts, counting, the forecast itself, the probe."""

import logging

import pytest
import torch
from accelerate.hooks import CpuOffload, add_hook_to_module, remove_hook_from_module

from tapvideo import ScheduleConfig, TapConfig, enable_tap
from tapvideo.models import adapter_for
from tapvideo.models.clock import RunClock
from tapvideo.models.hook import attach
from tapvideo.parallel.topology import alone
from tapvideo.predictors.taylor import taylor_weights


def inputs(step, dtype=torch.float32, per_token=False):
    generator = torch.Generator().manual_seed(step)
    latents = torch.randn(1, 4, 2, 4, 4, generator=generator, dtype=dtype)
    text = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(99), dtype=dtype)
    timestep = torch.tensor([1000.0 - 10 * step])
    if per_token:
        timestep = timestep[:, None].expand(1, 8).clone()
        timestep[:, :4] = 0
    return {"hidden_states": latents, "timestep": timestep, "encoder_hidden_states": text, "return_dict": False}


def call(transformer, step, branch="cond", num_steps=20, told=True, **kwargs):
    where = {"step_index": step, "num_inference_steps": num_steps} if told else {}
    with torch.no_grad(), transformer.cache_context(branch, **where):
        return transformer(**inputs(step, **kwargs))[0]


def stack_input_and_output(transformer, step):
    """x before block 0 and f(x) after the last, of the plain model."""
    seen = {}
    first = transformer.blocks[0].register_forward_pre_hook(lambda _, args: seen.__setitem__("x", args[0]))
    last = transformer.blocks[-1].register_forward_hook(lambda *a: seen.__setitem__("f", a[-1]))
    with torch.no_grad():
        transformer(**inputs(step))
    first.remove()
    last.remove()
    return seen["x"], seen["f"]


def test_forecast_is_input_plus_weighted_residuals(wan):
    """The whole chain against hand-made Taylor-1: head(x + r0 + (r0 - r1) k / N)."""
    transformer = wan.random_transformer()
    features = {step: stack_input_and_output(transformer, step) for step in range(5)}
    enable_tap(transformer, TapConfig(orders=[1], lookback=0.0, schedule=ScheduleConfig(interval=4)))
    seen = {}
    transformer.norm_out.register_forward_pre_hook(lambda _, args: seen.__setitem__("f", args[0]))
    for step in range(5):
        call(transformer, step)
    weights = taylor_weights([2.0, 1.0, 0.0], 4.0, order=1)
    residuals = [features[s][1] - features[s][0] for s in (2, 1, 0)]
    expected = features[4][0] + sum(w * r for w, r in zip(weights, residuals, strict=True))
    torch.testing.assert_close(seen["f"], expected, atol=1e-5, rtol=1e-5)


def test_branches_have_histories_of_their_own(wan):
    """A branch forecasts the same whether or not another one runs beside it, in whatever order."""
    transformer = wan.random_transformer()
    tap = enable_tap(transformer)
    alone = [call(transformer, step) for step in range(8)]
    tap.disable()
    enable_tap(transformer)
    for step in range(8):
        order = ("cond", "uncond") if step % 2 else ("uncond", "cond")
        out = {branch: call(transformer, step, branch) for branch in order}
        assert torch.equal(out["cond"], alone[step])


def test_no_context_runs_plain_and_warns_once(wan, caplog):
    transformer = wan.random_transformer()
    with torch.no_grad():
        plain = transformer(**inputs(0))[0]
    enable_tap(transformer)
    with caplog.at_level(logging.WARNING), torch.no_grad():
        for _ in range(3):
            assert torch.equal(transformer(**inputs(0))[0], plain)
    assert [r.message for r in caplog.records] == [
        "tapvideo: not accelerating, because no cache_context is set around the transformer's calls"
    ]


def test_names_without_steps_are_counted(wan):
    """As HunyuanVideo's pipeline does: a name and nothing else; the count starts anew when timesteps go up again."""
    told, counted = wan.random_transformer(), wan.random_transformer()
    enable_tap(told)
    hook = attach(counted, TapConfig(), RunClock(lambda: 20), alone())
    for _ in range(2):
        for step in range(9):  # abandoned in the middle
            assert torch.equal(call(counted, step, told=False), call(told, step))
    assert len(hook.trace.records) == 9


def test_unknown_number_of_steps_runs_plain(wan, caplog):
    transformer = wan.random_transformer()
    tap = enable_tap(transformer)
    with caplog.at_level(logging.WARNING):
        call(transformer, 0, told=False)
    assert "tells the number of steps" in caplog.text
    assert tap.trace.records == []


def test_expert_that_starts_in_the_middle_warms_up(wan):
    """Wan 2.2's second expert sees its first step at the boundary."""
    transformer = wan.random_transformer()
    tap = enable_tap(transformer, TapConfig(schedule=ScheduleConfig(interval=4, warmup=3)))
    for step in range(7, 20):
        call(transformer, step)
    assert tap.summary().full_steps[:4] == [7, 8, 9, 10]  # three to warm up, and 10 is on the beat
    assert 11 in tap.summary().forecast_steps


@pytest.mark.parametrize("per_token", [False, True])
def test_probe_is_the_input_of_the_first_attention(wan, per_token):
    transformer = wan.random_transformer()
    seen = {}
    block = transformer.blocks[0]
    block.register_forward_pre_hook(lambda _, args: seen.__setitem__("args", args))
    block.attn1.register_forward_pre_hook(lambda _, args: seen.__setitem__("h", args[0]))
    with torch.no_grad():
        transformer(**inputs(3, per_token=per_token))
        adapter = adapter_for(transformer)
        probe = adapter.modulated_input(block, adapter.stream(seen["args"], {}))
    assert torch.equal(probe, seen["h"])


def test_enabling_after_model_offload_is_refused(wan):
    transformer = add_hook_to_module(wan.random_transformer(), CpuOffload(execution_device="cpu"))
    with pytest.raises(ValueError, match=r"enable_tap before pipe\.enable_model_cpu_offload"):
        enable_tap(transformer)


def test_disabling_under_model_offload_keeps_the_offload(wan):
    transformer = wan.random_transformer()
    plain = call(transformer, 0)
    tap = enable_tap(transformer)
    add_hook_to_module(transformer, CpuOffload(execution_device="cpu"))
    call(transformer, 0)
    assert len(tap.trace.records) == 1
    tap.disable()
    assert torch.equal(call(transformer, 0), plain)
    assert hasattr(transformer, "_hf_hook")
    remove_hook_from_module(transformer)
    assert torch.equal(call(transformer, 0), plain)


def test_whole_compiled_transformer_is_refused(wan):
    with pytest.raises(ValueError, match="compile_repeated_blocks"):
        enable_tap(torch.compile(wan.random_transformer()))
    in_place = wan.random_transformer()
    in_place.compile()
    with pytest.raises(ValueError, match="compiled whole"):
        enable_tap(in_place)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_transformer_compiled_whole_later_forecasts_as_ever(wan, in_place):
    pipe = wan.random_pipeline()
    tap = enable_tap(pipe, TapConfig(schedule=ScheduleConfig(kind="explicit", steps=[0, 1, 5, 9], warmup=1)))
    expected, steps = wan.denoise(pipe, steps=12), tap.summary().forecast_steps
    if in_place:
        pipe.transformer.compile(backend="eager")
    else:
        pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    assert torch.equal(wan.denoise(pipe, steps=12), expected)
    assert tap.summary().forecast_steps == steps != []


def test_vace_is_refused_with_its_reason():
    class WanVACETransformer3DModel(torch.nn.Module):
        pass

    with pytest.raises(ValueError, match="hints between the blocks"):
        enable_tap(WanVACETransformer3DModel())
