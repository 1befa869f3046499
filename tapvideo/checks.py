"""Checks of configuration values, with errors that name key, value and what is allowed."""

import math
from dataclasses import fields
from numbers import Integral, Real
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

_LAST_SEED = 2**63 - 1


class ConfigError(ValueError):
    """A configuration value that is not allowed; the message names key, value and what is."""


def one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse names that are not known.

    Raises:
        ConfigError: if the value is none of them.
    """
    if value not in allowed:
        raise ConfigError(f"{key}={value!r} is not known; allowed: {', '.join(allowed)}")


def check_types(prefix: str, config: Any) -> None:
    """Refuse values that are not of their field's type, as Hydra does for those from the command line.

    Args:
        prefix: of the keys, e.g. `schedule`.
        config: an instance of a dataclass.

    Raises:
        ConfigError: for the first such value.
    """
    hints = get_type_hints(type(config))
    for name in (f.name for f in fields(config)):
        value = getattr(config, name)
        if not _fits(value, hints[name]):
            raise ConfigError(f"{prefix}.{name}={value!r} is of another type; allowed: {_told(hints[name])}")


def _fits(value: Any, hint: Any) -> bool:
    if _choices(hint):
        return any(_fits(value, choice) for choice in _choices(hint))
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_fits(part, get_args(hint)[0]) for part in value)
    if hint in (int, float):
        return isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)  # NumPy's as well
    return isinstance(value, hint)


def _told(hint: Any) -> str:
    """A type in words."""
    if _choices(hint):
        return " or ".join(_told(choice) for choice in _choices(hint))
    if get_origin(hint) is list:
        return f"a list, each {_told(get_args(hint)[0])}"
    words = {int: "a whole number", float: "a number", bool: "True or False", str: "a string", type(None): "None"}
    return words.get(hint, f"a {hint.__name__}" if isinstance(hint, type) else str(hint))


def _choices(hint: Any) -> tuple[Any, ...]:
    """Of a union."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else ()


def at_least(key: str, value: float, least: float) -> None:
    """Refuse what is too small or no number.

    Raises:
        ConfigError: if the value is not finite, or below `least`.
    """
    if not math.isfinite(value):
        raise ConfigError(f"{key}={value!r} is not finite; allowed: numbers from {least}")
    if not value >= least:
        raise ConfigError(f"{key}={value!r} is too small; allowed: {least} or more")


def check_seeds(key: str, seeds: list[int]) -> None:
    """Refuse what seeds no generator, or seeds it twice.

    Raises:
        ConfigError: if there is none, one is out of range, or one is repeated.
    """
    if not seeds or not all(0 <= seed <= _LAST_SEED for seed in seeds):
        raise ConfigError(f"{key}={seeds!r} is not a list of seeds; allowed: one or more integers from 0 to 2^63 - 1")
    if len(set(seeds)) != len(seeds):
        raise ConfigError(f"{key}={seeds!r} repeats a seed; allowed: each once")


def positive(key: str, value: float) -> None:
    """Refuse zero, negative numbers and infinity.

    Raises:
        ConfigError: if the value is not positive and finite.
    """
    if not 0 < value < math.inf:
        raise ConfigError(f"{key}={value!r} is not positive and finite; allowed: more than 0")
