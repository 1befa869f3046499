"""Checks of configuration values, with errors that name key, value and what is allowed."""

import math


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


def positive(key: str, value: float) -> None:
    """Refuse zero, negative numbers and infinity.

    Raises:
        ConfigError: if the value is not positive and finite.
    """
    if not 0 < value < math.inf:
        raise ConfigError(f"{key}={value!r} is not positive and finite; allowed: more than 0")
