"""`enable_tap` and `disable_tap`: the Python API."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from tapvideo.config import ConfigError, TapConfig
from tapvideo.models.clock import RunClock
from tapvideo.models.hook import attach, detach
from tapvideo.parallel.topology import Topology, alone
from tapvideo.planning import make_plan, read_calibration
from tapvideo.schedule import Plan, StepKind
from tapvideo.stack import TapStack
from tapvideo.trace import Trace

_COMPONENTS = ("transformer", "transformer_2")


@dataclass(frozen=True, slots=True)
class TapSummary:
    """What the last run did."""

    num_steps: int
    full_steps: list[int]
    forecast_steps: list[int]
    tap_seconds: float
    """Seconds of forecasts, and of probes and history on full steps, over all branches."""
    state_bytes: int
    """Bytes of anchors on this rank, over all branches."""
    shares: dict[int, dict[str, float]]
    """Share of tokens per predictor, by forecast step."""
    kv_bytes: int = 0
    """Bytes of kept keys and values on this rank, over all branches."""

    def __str__(self) -> str:
        """A few lines for people."""
        lines = [
            f"{len(self.full_steps)} full and {len(self.forecast_steps)} forecast of {self.num_steps} steps",
            f"TAP itself: {self.tap_seconds:.3f} s, {self.state_bytes / 2**20:.1f} MiB of anchors",
        ]
        if self.kv_bytes:
            lines.append(f"kept keys and values: {self.kv_bytes / 2**20:.1f} MiB")
        mean: dict[str, float] = {}
        for shares in self.shares.values():
            for label, share in shares.items():
                mean[label] = mean.get(label, 0.0) + share / len(self.shares)
        ranked = sorted(mean.items(), key=lambda item: -item[1])[:5]
        if ranked:
            lines.append("predictors: " + ", ".join(f"{label} {share:.0%}" for label, share in ranked))
        return "\n".join(lines)


class Tap:
    """TAP on a pipeline or a transformer; `disable()` takes it off again."""

    def __init__(
        self, modules: dict[str, nn.Module], config: TapConfig, pipeline: Any | None, topology: Topology
    ) -> None:
        calibration = read_calibration(config)
        if calibration is not None and len(calibration.starts) != len(modules):
            raise ConfigError(
                f"tap.calibration={config.calibration!r} is of {len(calibration.starts)} transformer(s), and this "
                f"pipeline has {len(modules)}; allowed: a calibration of such runs, or tap.family=taylor, lagrange or "
                "reuse on schedule.kind=interval, spread or explicit"
            )
        self.config = config
        self.topology = topology
        self._modules = modules
        self.traces: dict[str, Trace] = {}
        self._stacks: list[TapStack] = []
        clock = RunClock(lambda: _num_steps(pipeline), lambda: _rises(pipeline))
        attached: list[nn.Module] = []
        try:
            for name, module in modules.items():
                hook = attach(module, config, clock, topology)
                self.traces[name] = hook.trace
                self._stacks.append(hook.stack)
                attached.append(module)
        except ValueError:
            for module in attached:  # all experts or none
                detach(module)
            raise

    def __repr__(self) -> str:
        """What is on, on what, and what the last run did."""
        on = ", ".join(type(module).__name__ for module in self._modules.values())
        done = self.summary()
        told = (
            f"{len(done.full_steps)} full and {len(done.forecast_steps)} forecast steps" if done.num_steps else "none"
        )
        return f"<Tap {self.config.name} on {on}, schedule={self.config.schedule.kind}; last run: {told}>"

    @property
    def trace(self) -> Trace:
        """The last run's records of the first (often only) transformer."""
        return next(iter(self.traces.values()))

    def plan(self, num_steps: int) -> Plan:
        """The kinds of all steps of a run of `num_steps`."""
        return make_plan(self.config, num_steps)

    def summary(self) -> TapSummary:
        """What the last run did, over all transformers and branches."""
        traces = self.traces.values()
        records = [r for trace in traces for r in trace.records]
        forecasts = sorted({r.step for r in records if r.kind is StepKind.FORECAST})
        return TapSummary(
            num_steps=max((r.num_steps for r in records), default=0),
            full_steps=sorted({r.step for r in records if r.kind is StepKind.FULL}),
            forecast_steps=forecasts,
            tap_seconds=sum(trace.tap_seconds() for trace in traces),
            state_bytes=sum(sum(trace.state_bytes.values()) for trace in traces),
            kv_bytes=sum(sum(trace.kv_bytes.values()) for trace in traces),
            shares={step: shares for trace in traces for step in forecasts if (shares := trace.shares(step))},
        )

    def gather_trace(self) -> None:
        """Make the last run's records tell of all ranks' tokens; every rank that shares them must call this, once.

        Raises:
            PeerLost: if another rank does not answer.
        """
        for stack in self._stacks:
            stack.gather_trace()

    def disable(self) -> None:
        """Take TAP off; the model computes bit for bit what it did before.

        Raises:
            ValueError: if it is off already.
        """
        for module in self._modules.values():
            detach(module)


def enable_tap(pipe_or_transformer: Any, config: TapConfig | None = None, topology: Topology | None = None) -> Tap:
    """Accelerate a diffusers pipeline, or a bare transformer whose calls are wrapped in `cache_context`.

    Args:
        pipe_or_transformer: a pipeline (all its transformers are taken) or a transformer.
        config: the method and its schedule; the paper's by default.
        topology: the ranks that share the work, from `tapvideo.parallel.topology.build_topology`; by default one does
            everything. All of them must make the same calls with the same arguments.

    Raises:
        ValueError: if TAP is enabled already, the model is not supported, or the config is none.
    """
    if not isinstance(config, TapConfig | None):
        raise ConfigError(f"config={config!r} is no TapConfig; allowed: TapConfig(...), or what default_config returns")
    modules = _transformers(pipe_or_transformer)
    pipeline = None if isinstance(pipe_or_transformer, nn.Module) else pipe_or_transformer
    return Tap(modules, config or TapConfig(), pipeline, topology or alone())


def disable_tap(pipe_or_transformer: Any) -> None:
    """Take TAP off a pipeline or a transformer.

    Raises:
        ValueError: if it is not enabled.
    """
    for module in _transformers(pipe_or_transformer).values():
        detach(module)


def _transformers(pipe_or_transformer: Any) -> dict[str, nn.Module]:
    if isinstance(pipe_or_transformer, nn.Module):
        return {"transformer": pipe_or_transformer}
    found = {name: getattr(pipe_or_transformer, name, None) for name in _COMPONENTS}
    modules = {name: module for name, module in found.items() if module is not None}
    if not modules:
        name, missing = type(pipe_or_transformer).__name__, " or ".join(_COMPONENTS)
        raise ValueError(f"{name} has no {missing}; pass a diffusers pipeline or a transformer")
    return modules


def _num_steps(pipeline: Any | None) -> int | None:
    timesteps = _timesteps(pipeline)
    return None if timesteps is None else len(timesteps)


def _rises(pipeline: Any | None) -> bool:
    timesteps = _timesteps(pipeline)
    return timesteps is not None and len(timesteps) > 1 and bool(timesteps[-1] > timesteps[0])


def _timesteps(pipeline: Any | None) -> Any | None:
    return getattr(getattr(pipeline, "scheduler", None), "timesteps", None)
