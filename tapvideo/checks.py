"""Checks of configuration values, with errors that name key, value and what is allowed."""

import math

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
