"""The run-time type checker of the tests: beartype, which by itself refuses an int for a float; PEP 484 does not."""

from collections.abc import Callable

from beartype import BeartypeConf, beartype

_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Callable) -> Callable:
    """`function` with its arguments and result checked."""
    return _checked(function)
