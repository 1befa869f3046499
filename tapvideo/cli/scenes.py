"""`eval/scenes.py`: Hydra config in, exit code out."""

import shlex
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from tapvideo.cli.entry import EXIT_CONFIG, EXIT_RUN, complain, enter
from tapvideo.config import ConfigError, config_dir, from_hydra
from tapvideo.vbench.config import ScenesConfig
from tapvideo.vbench.scenes import run_scenes

_NAME = "scenes"


def main() -> None:
    """Judge drawn clips; 1 where one cannot be read, 2 for a config error, 130 for Ctrl-C and 143 for SIGTERM."""
    enter(_app, _NAME)


# An absolute folder: Hydra would look for a relative one beside the script that was started.
@hydra.main(version_base="1.3", config_path=str(config_dir().resolve()), config_name="scenes")
def _app(raw: DictConfig) -> None:
    chosen = [*HydraConfig.get().overrides.task]
    try:
        config = from_hydra(ScenesConfig, raw)
        results = run_scenes(config, command=shlex.join(["python", "eval/scenes.py", *chosen]))
    except ConfigError as error:
        complain(_NAME, str(error))
        sys.exit(EXIT_CONFIG)
    except OSError as error:
        complain(_NAME, str(error))
        sys.exit(EXIT_RUN)
    if results.problems:
        complain(_NAME, f"{len({clip.file for clip, _, _ in results.problems})} videos cannot be read")
        sys.exit(EXIT_RUN)


if __name__ == "__main__":
    main()
