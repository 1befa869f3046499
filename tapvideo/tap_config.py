"""Typed configuration of the method: which steps are full, and how the others are forecast."""

from dataclasses import MISSING, dataclass, field, fields

from tapvideo.checks import ConfigError, at_least, check_types, one_of, positive
from tapvideo.parallel.attention import EXCHANGES
from tapvideo.parallel.kept import KV_DTYPES

FAMILIES = ("taylor", "lagrange", "reuse", "calibrated")
PROXIES = ("cosine", "l2")
CHOICES = ("token", "sample")
PROBES = ("modulated", "block_output", "block_residual")
COORDINATES = ("step", "sigma")
SCHEDULES = ("interval", "explicit", "spread", "calibrated")
AUTO = "auto"
"""The calibration that fits a run, from those that ship with tapvideo and those of your own."""

BY_SPEEDUP = ("spread", "calibrated")
"""Schedules that are told how many steps may be full, and not how far they are apart."""

_MOST_CANDIDATES = 127  # choices are kept in one signed byte per token

_INTERVAL = 4  # as in the paper's tables

_USED_BY = {"last": "interval", "steps": "explicit"}
"""Keys that one kind of schedule has a use for."""


@dataclass(kw_only=True)
class ScheduleConfig:
    """Which denoising steps are full."""

    kind: str = "interval"
    """`interval`: the first `warmup`, then every `interval`-th, and the `last` steps. `explicit`: those in `steps`.
    `spread`: as many as `speedup` allows, in a head and growing gaps. `calibrated`: where calibration wants them."""
    speedup: float | None = None
    """Steps over full steps, of kinds `spread` and `calibrated`."""
    interval: int | None = None
    """Distance between full steps after the warm-up, of kind `interval`: 1 makes every step full, null is 4."""
    warmup: int = 3
    """Full steps at the start, of every branch and of every expert; calibrated schedules have their own idea of it."""
    last: int = 1
    """Full steps at the end."""
    steps: list[int] = field(default_factory=list)
    """Full steps of the explicit schedule, counted from 0; step 0 always is one."""
    min_steps: int = 12
    """Runs of fewer steps than this are not accelerated: few-step models have nothing to skip."""

    def __post_init__(self) -> None:
        """Check every value."""
        check_types("schedule", self)
        one_of("schedule.kind", self.kind, SCHEDULES)
        self._check_beat()
        self._check_idle()
        at_least("schedule.warmup", self.warmup, 1)
        at_least("schedule.last", self.last, 0)
        at_least("schedule.min_steps", self.min_steps, 0)
        if self.kind == "explicit" and not self.steps:
            raise ConfigError(
                "schedule.steps=[] is empty; schedule.kind=explicit needs the list of full steps, e.g. [0,1,2,6,10]"
            )
        if any(s < 0 for s in self.steps):
            raise ConfigError(f"schedule.steps={self.steps!r} has a negative step; allowed: 0 or more")

    @property
    def expert_warmup(self) -> int:
        """Full steps with which an expert begins that takes over in mid-run."""
        return 1 if self.kind == "calibrated" else self.warmup

    def _check_beat(self) -> None:
        """Each kind has its own measure of how many steps are full; another's would change nothing."""
        if self.kind == "interval":
            self.interval = _INTERVAL if self.interval is None else self.interval
            at_least("schedule.interval", self.interval, 1)
        elif self.interval is not None:
            own = "speedup" if self.kind in BY_SPEEDUP else "steps"
            raise ConfigError(
                f"schedule.interval={self.interval!r} is not for schedule={self.kind}; "
                f"allowed: schedule.{own}, or schedule=interval"
            )
        if self.kind in BY_SPEEDUP:
            if self.speedup is None:
                raise ConfigError(f"schedule.speedup=null, and schedule.kind={self.kind} needs it; allowed: 1 or more")
            at_least("schedule.speedup", self.speedup, 1)
            return
        if self.speedup is not None:
            allowed = ", ".join(f"schedule={kind}" for kind in BY_SPEEDUP)
            raise ConfigError(f"schedule.speedup={self.speedup!r} is not for schedule={self.kind}; allowed: {allowed}")

    def _check_idle(self) -> None:
        """What the kind has no use for would change nothing, and nobody would notice."""
        defaults = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(self)}
        for key, kind in _USED_BY.items():
            value = getattr(self, key)
            if self.kind != kind and value != defaults[key]:
                allowed = f"{defaults[key]!r}, or schedule={kind}"
                raise ConfigError(f"schedule.{key}={value!r} is not for schedule={self.kind}; allowed: {allowed}")

    def count(self, num_steps: int) -> int:
        """Full steps of a run, of kinds that go by `speedup`."""
        assert self.speedup is not None
        return max(1, round(num_steps / self.speedup))


@dataclass(kw_only=True)
class RecomputeConfig:
    """Tokens that are forecast so badly that they run through the blocks on a forecast step after all."""

    budget: float = 0.0
    """Share of all tokens that may be recomputed on a forecast step, the worst first; 0 is off."""
    threshold: float = 0.0
    """Proxy error from which a token is stale; 0 spends the whole budget on every forecast step."""
    exchange: str = "auto"
    """What ranks tell each other: `ulysses` (fewest bytes), `allgather_q`, `allgather_kv`; `auto`: the first it can."""
    kv_dtype: str = "model"
    """Of the keys and values that layers keep: `model`, or `fp8` (e4m3 with a scale per token and head)."""
    kv_layers: list[int] = field(default_factory=list)
    """Layers that keep them; empty is all. In the others recomputed tokens attend to each other alone."""
    kv_offload: bool = False
    """Keep them on the CPU."""

    def __post_init__(self) -> None:
        """Check every value."""
        check_types("tap.recompute", self)
        at_least("tap.recompute.budget", self.budget, 0)
        at_least("tap.recompute.threshold", self.threshold, 0)
        if self.budget > 1:
            raise ConfigError(f"tap.recompute.budget={self.budget!r} is a share of tokens; allowed: 0 (off) to 1")
        one_of("tap.recompute.exchange", self.exchange, ("auto", *EXCHANGES))
        one_of("tap.recompute.kv_dtype", self.kv_dtype, KV_DTYPES)
        if any(layer < 0 for layer in self.kv_layers):
            raise ConfigError(f"tap.recompute.kv_layers={self.kv_layers!r} has a negative layer; allowed: 0 or more")


@dataclass(kw_only=True)
class ForecastConfig:
    """How the block stack's output is forecast on the steps between."""

    name: str = "paper"
    """What reports call this method."""
    enabled: bool = True
    """False is plain diffusers."""
    family: str = "taylor"
    """Candidate predictors: `taylor` (the paper's), `lagrange` (exact on uneven anchors), `reuse` (order 0);
    `calibrated`: one, of the weights that erred least on calibration clips."""
    calibration: str = AUTO
    """File of `tapvideo-calibrate`, or `auto`: the one that fits the run, if there is one."""
    blend: float = 0.0
    """Share of the calibrated weights in what is forecast; the rest is of the predictor that the probe chose."""
    guard: bool = False
    """Hold the last anchor where the last full step shows that forecasts of the guided sum move the wrong way, and
    before the first one that could show it."""
    orders: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Orders in the family."""
    lookback: float = 4.0
    """Candidates forecast to distances k - lookback .. k steps from the last full step (the paper's lambda)."""
    spacing: float = 1.0
    """Spacing of those distances in steps (the paper's delta)."""
    anchors: int = 3
    """Full steps that are remembered; at least the highest order + 1."""
    proxy: str = "cosine"
    """Distance on the probe: `cosine` (the paper's) or `l2`."""
    choice: str = "token"
    """One predictor per `token` (the paper's) or per `sample`."""
    probe: str = "modulated"
    """`modulated` input of block 0 (the paper's, runs none), output or residual of the first `probe_depth` blocks."""
    probe_depth: int = 1
    """Blocks that run on every step for the block probes."""
    coordinate: str = "step"
    """Time axis of the anchors: `step` index (the paper's) or `sigma`."""
    recompute: RecomputeConfig = field(default_factory=RecomputeConfig)
    """Tokens to run through the blocks on forecast steps."""
    maps: bool = True
    """Keep the chosen predictor of every token for the report (one byte per token and forecast step)."""

    def __post_init__(self) -> None:
        """Check every value."""
        check_types("tap", self)
        one_of("tap.family", self.family, FAMILIES)
        one_of("tap.proxy", self.proxy, PROXIES)
        one_of("tap.choice", self.choice, CHOICES)
        one_of("tap.probe", self.probe, PROBES)
        one_of("tap.coordinate", self.coordinate, COORDINATES)
        at_least("tap.lookback", self.lookback, 0)
        at_least("tap.anchors", self.anchors, 1)
        at_least("tap.probe_depth", self.probe_depth, 1)
        if self.probe == "modulated" and self.probe_depth != 1:
            blocks = " or ".join(f"tap.probe={probe}" for probe in PROBES if probe != "modulated")
            raise ConfigError(f"tap.probe_depth={self.probe_depth!r} is not for tap.probe=modulated; allowed: {blocks}")
        positive("tap.spacing", self.spacing)
        at_least("tap.blend", self.blend, 0)
        if self.blend > 1:
            raise ConfigError(f"tap.blend={self.blend!r} is a share; allowed: 0 to 1")
        if self.uses_calibrated_weights and self.coordinate != "step":
            raise ConfigError(
                f"tap.coordinate={self.coordinate!r} is not for calibrated weights, which know steps; allowed: step"
            )
        if not self.orders or any(o < 0 for o in self.orders):
            raise ConfigError(
                f"tap.orders={self.orders!r} is not a list of orders; allowed: one or more integers from 0"
            )
        needed = max(self.orders) + 1
        if self.anchors < needed:
            raise ConfigError(
                f"tap.orders={self.orders!r} needs {needed} anchors; tap.anchors={self.anchors} is too small"
            )
        if self.guard and self.anchors < 2:
            raise ConfigError(f"tap.anchors={self.anchors} leaves tap.guard no move to judge; allowed: 2 or more")
        candidates = len(self.orders) * (int(self.lookback / self.spacing) + 1)
        if candidates > _MOST_CANDIDATES:
            asked = f"tap.lookback={self.lookback!r} and tap.spacing={self.spacing!r} make {candidates} candidates"
            raise ConfigError(f"{asked}; allowed: up to {_MOST_CANDIDATES}")

    @property
    def uses_calibrated_weights(self) -> bool:
        """Whether forecasts, and not the schedule alone, come from calibration clips."""
        return self.family == "calibrated" or self.blend > 0


@dataclass(kw_only=True)
class TapConfig(ForecastConfig):
    """Everything `enable_tap` needs; by default the paper's method with three warm-up steps and an exact last one."""

    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Which steps are full."""

    @property
    def needs_probe(self) -> bool:
        """Whether there is something to choose, or to find stale: with one candidate no probe is computed or kept."""
        one_order = len(self.orders) == 1 and self.lookback < self.spacing
        chooses = self.family not in ("reuse", "calibrated") and max(self.orders) > 0 and not one_order
        return chooses or self.recompute.budget > 0

    @property
    def needs_calibration(self) -> bool:
        """Whether forecasts, their guard or the schedule go by calibration clips."""
        return self.enabled and (self.uses_calibrated_weights or self.guard or self.schedule.kind == "calibrated")

    @property
    def awaits_calibration(self) -> bool:
        """Whether the calibration has not been looked for yet."""
        return self.needs_calibration and self.calibration == AUTO
