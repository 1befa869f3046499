"""`tapvideo-generate` and `launch/generate.py`: Hydra config in, exit code out."""

import os
import re
import shlex
import sys
import traceback

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from tapvideo.cli.entry import EXIT_CONFIG, EXIT_RUN, complain, enter
from tapvideo.config import ConfigError, GenerateConfig, config_dir
from tapvideo.generate import run
from tapvideo.parallel.comm import PeerLost
from tapvideo.parallel.launch import Hushed, RankFailed
from tapvideo.sample import RunFailed

_NAME = "tapvideo-generate"
_TEXT_KEYS = ("prompt", "negative_prompt")


def main() -> None:
    """Generate videos; 2 is the exit code for a config error, 130 for Ctrl-C and 143 for SIGTERM."""
    stray = next((a for a in sys.argv[1:] if " " in a.strip() and "=" not in a and not a.startswith("-")), None)
    if stray is not None:
        complain(_NAME, f"{stray!r} has no key; allowed: prompt={stray!r}")
        sys.exit(EXIT_CONFIG)
    sys.argv[1:] = [quote_text(argument) for argument in sys.argv[1:]]
    enter(_app, _NAME)


def quote_text(argument: str) -> str:
    """An override of a text key in Hydra's quotes: it would take a comma for a sweep and a parenthesis for a call.

    A value that is quoted as a whole is left as it is, and so is every other argument.
    """
    key, equals, value = argument.partition("=")
    is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    if not equals or key not in _TEXT_KEYS or is_quoted:
        return argument
    if value == "null":  # none, as with all other keys; the word itself is 'null', quoted
        return f"{key}=''"
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
    escaped = re.sub(r"(\\+)$", r"\1\1", escaped)
    return f"{key}='{escaped}'"


# An absolute folder: Hydra would look for a relative one beside the script that was started.
@hydra.main(version_base="1.3", config_path=str(config_dir().resolve()), config_name="generate")
def _app(raw: DictConfig) -> None:
    try:
        overrides = HydraConfig.get().overrides.task
        run(GenerateConfig.from_hydra(raw), command=shlex.join([_NAME, *overrides]))
    except (ConfigError, PeerLost, RunFailed) as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # before ranks have joined: one voice per machine
            complain(_NAME, str(error))
        sys.exit(exit_code(error))
    except RankFailed as failed:
        if not isinstance(failed.error, ConfigError | RunFailed | PeerLost):
            traceback.print_exception(failed.error)  # not foreseen: whoever mends it wants to know where
        complain(_NAME, str(failed))
        sys.exit(exit_code(failed.error))
    except Hushed:
        sys.exit(EXIT_RUN)


def exit_code(error: Exception) -> int:
    """2 for what is wrong with the configuration, 1 for what went wrong in the run."""
    return EXIT_CONFIG if isinstance(error, ConfigError) else EXIT_RUN


if __name__ == "__main__":
    main()
