"""A second sequence that goes through the same blocks: closed forms, and what it costs."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from tapvideo import ScheduleConfig, TapConfig
from tapvideo.history import BranchState, StepContext
from tapvideo.parallel.attention import SequenceAttention
from tapvideo.parallel.kept import KeepOptions
from tapvideo.parallel.shard import TokenShard
from tapvideo.parallel.topology import alone
from tapvideo.schedule import StepKind
from tapvideo.stack import TapStack
from tapvideo.stream import Stream
from tapvideo.trace import Trace

FULL, NUM_STEPS = [0, 1, 3, 6], 9
VIDEO, SOUND = (2, 5, 4), (2, 3, 6)  # [b, n, d]


def curve(seed, shape):
    """A polynomial of order 2 of the step, another one in every number."""
    a, b, c = torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return lambda step: a + b * step / 4 + c * step * step / 16


class Adds(nn.Module):
    """A block that adds half of what all blocks make of a step."""


class Toy:
    """Residuals and probes that are known functions of the step: of the video, and of its companion."""

    def __init__(self, residuals, probes):
        self.residuals, self.probes = residuals, probes

    def stream(self, args, kwargs):
        video, sound, step = args
        beside = None if sound is None else Stream(sound, rest=(step, 1))
        return Stream(video, rest=(step, 0), companion=beside)

    def _after(self, part):
        step, which = part.rest
        return replace(part, hidden=part.hidden + (self.residuals[which](step) / 2).to(part.hidden))

    def run(self, block, stream):
        beside = None if stream.companion is None else self._after(stream.companion)
        return replace(self._after(stream), companion=beside)

    def result(self, stream):
        return stream

    def read_result(self, result):
        return result.hidden, None

    def modulated_input(self, block, stream):
        step, which = stream.rest
        return self.probes[which](step).to(stream.hidden)

    def take_tokens(self, stream, positions):
        return replace(stream, hidden=stream.hidden.index_select(1, positions))


def run(adapter, config, *, sound=SOUND):
    """What the stack made of every step, less what went in, and the state and trace that it left."""
    attention = SequenceAttention(alone().sp, full="ulysses", exchange="ulysses")
    shard = TokenShard(attention, layout="diagonal")
    trace, state = Trace(), BranchState(config.anchors)
    stack = TapStack([Adds(), Adds()], adapter, shard, config, trace)
    shard.enter((1, 1, VIDEO[1]), torch.device("cpu"))
    made, sizes = {}, {}
    for step in range(NUM_STEPS):
        video = torch.randn(*VIDEO, generator=torch.Generator().manual_seed(step))
        beside = None if sound is None else torch.randn(*sound, generator=torch.Generator().manual_seed(99 + step))
        stack.call = StepContext("cond", step, NUM_STEPS), state
        out = stack(video, beside, step)
        made[step] = out.hidden - video, None if beside is None else out.companion.hidden - beside
        sizes[step] = state.num_bytes
    return made, sizes, trace


def config(**changes):
    return TapConfig(schedule=ScheduleConfig(kind="explicit", steps=FULL, warmup=1, min_steps=0), **changes)


def test_polynomials_of_both_streams_are_forecast_exactly():
    curves = curve(1, VIDEO), curve(2, SOUND)
    made, _, trace = run(Toy(curves, curves), config(family="lagrange", orders=[2]))
    assert [r.step for r in trace.records if r.kind is StepKind.FORECAST] == [2, 4, 5, 7, 8]
    for step in (4, 5, 7, 8):  # three anchors from step 4 on
        for which in (0, 1):
            torch.testing.assert_close(made[step][which].double(), curves[which](step), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("choice", ["token", "sample"])
def test_each_stream_is_forecast_by_its_own_errors(choice):
    """The video is a polynomial of order 2; its companion stands still between full steps, so order 0 is right."""

    def stands(step):
        anchor = max(full for full in FULL if full <= step)
        return torch.randn(*SOUND, generator=torch.Generator().manual_seed(anchor), dtype=torch.float64)

    curves = curve(1, VIDEO), stands
    method = config(family="lagrange", orders=[0, 1, 2], lookback=0.0, choice=choice)
    made, _, trace = run(Toy(curves, curves), method)
    for step in (4, 5, 7, 8):
        for which in (0, 1):
            torch.testing.assert_close(made[step][which].double(), curves[which](step), atol=2e-5, rtol=1e-5)
        assert (trace.records[step].choice == 2).all()  # maps and shares tell of the video


def test_a_method_without_probes_forecasts_both():
    curves = curve(1, VIDEO), curve(2, SOUND)
    made, _, _ = run(Toy(curves, (None, None)), config(family="reuse", orders=[0], lookback=0.0))
    for step, anchor in ((2, 1), (4, 3), (5, 3), (7, 6), (8, 6)):
        for which in (0, 1):
            torch.testing.assert_close(made[step][which].double(), curves[which](anchor), atol=2e-5, rtol=1e-5)


def test_block_probes_are_of_both_streams():
    curves = curve(1, VIDEO), curve(2, SOUND)
    method = config(family="lagrange", orders=[0, 1, 2], lookback=0.0, probe="block_residual", probe_depth=1)
    made, _, _ = run(Toy(curves, (None, None)), method)
    for which in (0, 1):
        torch.testing.assert_close(made[5][which].double(), curves[which](5), atol=2e-5, rtol=1e-5)


def test_bytes_of_both_are_counted_and_without_a_companion_nothing_is_added():
    curves = curve(1, VIDEO), curve(2, SOUND)
    anchors, video, sound = 3, 2 * 5 * 4 * 4, 2 * 3 * 6 * 4
    _, sizes, trace = run(Toy(curves, curves), config())
    assert [sizes[s] for s in (0, 1, 3, 6)] == [2 * min(i, anchors) * (video + sound) for i in (1, 2, 3, 4)]
    assert trace.state_bytes == {"cond": 2 * anchors * (video + sound)}
    made, sizes, _ = run(Toy(curves, curves), config(), sound=None)
    assert sizes[6] == 2 * anchors * video
    assert made[8][1] is None


def test_companions_anchors_go_with_the_first():
    state = BranchState(2)
    for own in (state, state.beside()):
        own.push(0, 0.0, None, torch.zeros(1, 2, 3))
    state.reset()
    assert state.num_bytes == state.beside().num_bytes == 0
    assert not state.beside().residuals


def test_layers_that_keep_keys_keep_them_for_a_companion_too():
    options = KeepOptions(layers=frozenset({0, 2}))
    assert [options.keeps(layer) for layer in (0, 1, 2)] == [options.keeps(~layer) for layer in (0, 1, 2)]
    assert [options.keeps(~layer) for layer in (0, 1, 2)] == [True, False, True]
