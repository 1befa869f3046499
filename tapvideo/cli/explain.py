"""What Hydra has against a command line, in the words of all other config errors: key, value, what is allowed."""

from difflib import get_close_matches

from hydra.errors import MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

_FREE = "model.call."  # below which any argument of a pipeline's call may be added
_MOST = 12  # names in a list
_BELOW = {
    **{name: f"schedule.{name}" for name in ("speedup", "interval", "warmup", "last", "min_steps")},
    **{f"tap.{name}": f"schedule.{name}" for name in ("speedup", "interval", "warmup", "last", "steps")},
    "weights": "model.weights",
    "seed": "seeds=[0]",
}
"""Keys that are looked for in the wrong place."""

_IDLE = ("See https://", "3. To sweep over it", "Set the environment variable")  # of no use here


def explain(error: Exception) -> str:
    """One line, with the names that come near where one is unknown."""
    cause = error.__cause__
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={name} is not there; allowed: {', '.join(error.options)}"
    if isinstance(cause, OmegaConfBaseException) and "Could not override" in str(error):
        if str(cause.full_key).startswith(_FREE):
            return f"{cause.full_key} is not among the arguments that the yaml lists; allowed: +{cause.full_key}=VALUE"
        return f"{cause.full_key} is no key; {_instead(cause)}"
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line if line.endswith(".") else f"{line};" for line in lines if line and not line.startswith(_IDLE)]
    return " ".join(kept).rstrip(";")


def _instead(cause: OmegaConfBaseException) -> str:
    if cause.full_key in _BELOW:
        return f"did you mean {_BELOW[cause.full_key]}? --cfg job shows all"
    parent = cause.parent_node
    names = sorted(str(name) for name in parent) if isinstance(parent, DictConfig) else []
    above = str(cause.full_key).removesuffix(str(cause.key))
    near = get_close_matches(str(cause.key), names, n=3)
    if near:
        return f"did you mean {' or '.join(above + name for name in near)}? --cfg job shows all"
    is_short = 0 < len(names) <= _MOST
    return f"allowed: {', '.join(above + name for name in names)}" if is_short else "--cfg job shows all that are"
