"""The run-time type checker of the tests: beartype, which by itself refuses an int for a float; PEP 484 does not."""

from collections.abc import Callable

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep3119Exception

_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Callable) -> Callable:
    """`function` with arguments and result checked; as it is where a protocol in its signature cannot be checked."""
    try:
        return _checked(function)
    except BeartypeDecorHintPep3119Exception:
        return function
