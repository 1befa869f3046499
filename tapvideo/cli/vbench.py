"""`eval/vbench.py`: Hydra config in, exit code out."""

import shlex
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from tapvideo.cli.entry import EXIT_CONFIG, EXIT_RUN, complain, enter
from tapvideo.config import ConfigError, config_dir, from_hydra
from tapvideo.sample import RunFailed
from tapvideo.vbench.config import VBenchConfig
from tapvideo.vbench.stage import run_vbench, weights_text

_NAME = "vbench"


def main() -> None:
    """Score videos; 1 where one has no score, 2 for a config error, 130 for Ctrl-C and 143 for SIGTERM."""
    enter(_app, _NAME, then="; the same command goes on from here")


# An absolute folder: Hydra would look for a relative one beside the script that was started.
@hydra.main(version_base="1.3", config_path=str(config_dir().resolve()), config_name="vbench")
def _app(raw: DictConfig) -> None:
    chosen = [*HydraConfig.get().overrides.task]
    try:
        config = from_hydra(VBenchConfig, raw)
        if config.weights:
            text, complete = weights_text(config)
            print(text)
            sys.exit(0 if complete else EXIT_RUN)
        results = run_vbench(config, command=shlex.join(["python", "eval/vbench.py", *chosen]))
    except ConfigError as error:
        complain(_NAME, str(error))
        sys.exit(EXIT_CONFIG)
    except (RunFailed, OSError) as error:
        complain(_NAME, str(error))
        sys.exit(EXIT_RUN)
    if results is not None and results.problems:
        complain(_NAME, f"{len(results.problems)} scores are missing; the same command tries them again")
        sys.exit(EXIT_RUN)


if __name__ == "__main__":
    main()
