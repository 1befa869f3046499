"""The run-time type checker of the tests: beartype, which by itself refuses an int for a float; PEP 484 does not."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
