"""`eval/compare.py`: Hydra config in, exit code out."""

import shlex
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from tapvideo.cli.entry import EXIT_CONFIG, EXIT_RUN, complain, enter
from tapvideo.compare import run
from tapvideo.compare.config import CompareConfig
from tapvideo.config import ConfigError, config_dir, from_hydra
from tapvideo.sample import RunFailed

_NAME = "compare"


def main() -> None:
    """Compare methods; 2 is the exit code for a config error, 130 for Ctrl-C and 143 for SIGTERM."""
    enter(_app, _NAME, then="; the same command goes on from here")


# An absolute folder: Hydra would look for a relative one beside the script that was started.
@hydra.main(version_base="1.3", config_path=str(config_dir().resolve()), config_name="compare")
def _app(raw: DictConfig) -> None:
    try:
        chosen = [*HydraConfig.get().overrides.task]
        run(from_hydra(CompareConfig, raw), command=shlex.join(["python", "eval/compare.py", *chosen]))
    except ConfigError as error:
        complain(_NAME, str(error))
        sys.exit(EXIT_CONFIG)
    except RunFailed as error:
        complain(_NAME, str(error))
        sys.exit(EXIT_RUN)


if __name__ == "__main__":
    main()
