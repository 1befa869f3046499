"""`python -m tapvideo.parallel.plan`: what a run on many GPUs would move, compute, keep and take."""

import json
import sys
from dataclasses import fields, is_dataclass, replace
from typing import Any, get_type_hints

import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from tapvideo.checks import ConfigError, one_of
from tapvideo.config import GenerateConfig, TapConfig, config_dir, from_hydra
from tapvideo.parallel.estimate import Clip, Mesh, estimate, scaling, without_recompute
from tapvideo.parallel.plan_config import PlanConfig
from tapvideo.parallel.plan_tables import Planned, as_json, as_markdown
from tapvideo.parallel.topology import mesh_sizes
from tapvideo.planning import make_plan
from tapvideo.resolve import resolve
from tapvideo.schedule import Plan
from tapvideo.schedulers import plan_steps

GROUPS = ("model", "arch", "tap", "schedule", "parallel")
PROGRAM = "python -m tapvideo.parallel.plan"
EXIT_CONFIG = 2


def main(argv: list[str] | None = None) -> None:
    """Print a plan; 2 is the exit code for a config error."""
    arguments = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(arguments):
        print(usage())
        return
    try:
        planned = make(read([a if a != "--json" else "format=json" for a in arguments]))
    except ValueError as error:
        print(f"{PROGRAM}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(EXIT_CONFIG)
    is_json = planned.config.format == "json"
    print(json.dumps(as_json(planned), indent=2) if is_json else as_markdown(planned))


def usage() -> str:
    """How to call it, with all keys of its own."""
    own = ", ".join(f.name for f in fields(PlanConfig) if f.name not in GROUPS)
    example = "model=wan_14b world=16 parallel.cfg=2 tap.recompute.budget=0.05 schedule.interval=5 gpu_gib=80"
    groups = ", ".join(f"{group}=NAME and {group}.KEY=VALUE" for group in GROUPS)
    return f"usage: {PROGRAM} [--json] KEY=VALUE ..\n\n{__doc__}\n\nkeys: {own}; {groups}\ne.g.: {PROGRAM} {example}"


def read(arguments: list[str]) -> PlanConfig:
    """The config that `key=value` arguments ask for.

    Raises:
        ConfigError: for an unknown key, a wrong type or a value that is not allowed.
    """
    for argument in arguments:
        _check_argument(argument)
    chosen = dict(argument.split("=", 1) for argument in arguments)
    if "model" in chosen and "arch" not in chosen and chosen["model"] not in _names("arch"):
        known = ", ".join(f"arch={name}" for name in _names("arch"))
        raise ConfigError(f"model={chosen['model']}: nothing is known of its sizes; allowed with it: {known}")
    return from_hydra(PlanConfig, _compose(arguments))


def make(config: PlanConfig) -> Planned:
    """All figures of a plan.

    Raises:
        ValueError: if values do not go together.
    """
    arch, tap = config.arch, config.tap_config
    grid = arch.token_grid(height=config.height, width=config.width, num_frames=config.num_frames)
    clip = Clip(
        arch, grid, config.max_sequence_length, getattr(torch, config.dtype), 2 if config.guidance > 1 else 1,
        config.offload,
    )  # fmt: skip
    tap, plan = _plan_of(config, tap)
    mesh = Mesh(*mesh_sizes(config.parallel, config.world))
    attention = config.parallel.attention
    chosen = estimate(clip, tap, plan, mesh, attention, config.machine(gpus_per_node=config.gpus_per_node))
    methods = [without_recompute(tap)] + ([tap] if chosen.recomputed else [])
    tables = {
        link: scaling(
            clip,
            methods,
            plan,
            config.scaling,
            dp=mesh.dp,
            attention=attention,
            machine=config.machine(gpus_per_node=n),
        )
        for link, n in (("nvlink", max([1, *config.scaling])), ("internode", config.gpus_per_node))
    }
    one = estimate(clip, methods[0], plan, Mesh(1, 1, 1), "auto", config.machine(gpus_per_node=1))
    return Planned(config, clip, chosen, one.seconds_full, tables)


def _plan_of(config: PlanConfig, tap: TapConfig) -> tuple[TapConfig, Plan]:
    """The method as it runs, and the kinds of all steps."""
    model = config.model
    if model.boundary is not None:
        run = GenerateConfig(
            model=model, tap=config.tap, schedule=config.schedule, steps=config.steps,
            scheduler=model.scheduler, flow_shift=model.flow_shift, guidance=model.guidance,
        )  # fmt: skip
        run = resolve(run)
        return run.tap_config, plan_steps(run)
    if tap.schedule.kind == "calibrated" and tap.awaits_calibration:  # what it costs depends on how many are full
        tap = replace(tap, schedule=replace(tap.schedule, kind="spread"))
    return tap, make_plan(tap, config.steps)


def _check_argument(argument: str) -> None:
    """Refuse keys that do not exist, and files of groups that do not, before Hydra explains it at length."""
    key, equals, value = argument.partition("=")
    if not equals:
        raise ConfigError(f"{argument!r} is not key=value; allowed: e.g. model=wan_14b world=8, and --json")
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException as error:
        raise ConfigError(f"{argument} cannot be read; allowed: key=NUMBER, key=name, key=[1,2], key='text'") from error
    if key in GROUPS:
        one_of(key, value, _names(key))
        return
    schema: Any = PlanConfig
    path = ""
    for name in key.split("."):
        below = get_type_hints(schema) if is_dataclass(schema) else {}
        if name not in below:
            raise ConfigError(f"{argument}: there is no key {key!r}; allowed: {_keys(path, below)}")
        schema, path = below[name], f"{path}{name}."
    if is_dataclass(schema):
        raise ConfigError(f"{argument}: {key!r} is a group of keys; allowed: {_keys(path, get_type_hints(schema))}")


def _names(group: str) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in (config_dir() / group).glob("*.yaml")))


def _keys(path: str, below: dict[str, Any]) -> str:
    return ", ".join(path + name for name in below) or path.rstrip(".")


def _compose(arguments: list[str]) -> Any:
    try:
        with initialize_config_dir(str(config_dir().resolve()), version_base="1.3"):
            return compose("plan", arguments)
    except HydraException as error:
        first = str(error).splitlines()[0]
        raise ConfigError(
            f"{' '.join(arguments)}: {first}; allowed: KEY=VALUE with the keys of conf/plan.yaml"
        ) from error


if __name__ == "__main__":
    main()
