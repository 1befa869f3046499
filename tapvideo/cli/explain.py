"""What Hydra has against a command line, in the words of all other config errors: key, value, what is allowed."""

from difflib import get_close_matches

from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

_MOST = 12  # names in a list
_IDLE = ("See https://", "3. To sweep over it", "Set the environment variable")  # of no use here


def explain(error: HydraException | OmegaConfBaseException) -> str:
    """One line, with the names that come near where one is unknown."""
    cause = error.__cause__
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={name} is not there; allowed: {', '.join(error.options)}"
    if isinstance(cause, OmegaConfBaseException) and "Could not override" in str(error):
        return f"{cause.full_key} is no key; {_instead(cause)}"
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line if line.endswith(".") else f"{line};" for line in lines if line and not line.startswith(_IDLE)]
    return " ".join(kept).rstrip(";")


def _instead(cause: OmegaConfBaseException) -> str:
    parent = cause.parent_node
    if not isinstance(parent, DictConfig):
        return "it has none below it"
    names = sorted(str(name) for name in parent)
    near = get_close_matches(str(cause.key), names, n=3) or names[: len(names) if len(names) <= _MOST else 0]
    above = str(cause.full_key).removesuffix(str(cause.key))
    listed = " or ".join(f"{above}{name}" for name in near)
    return f"did you mean {listed}? --cfg job shows all" if near else "--cfg job shows all that are"
