"""`eval/scenes.py`: Hydra config in, exit code out."""

import shlex
import signal
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from tapvideo.config import ConfigError, config_dir, from_hydra
from tapvideo.vbench.config import ScenesConfig
from tapvideo.vbench.scenes import run_scenes

EXIT_RUN, EXIT_CONFIG, EXIT_INTERRUPT = 1, 2, 128 + signal.SIGINT


def main() -> None:
    """Judge clips of the drawn world; 1 where one cannot be read, 2 for a config error, 130 for Ctrl-C."""
    try:
        _app()
    except KeyboardInterrupt:
        _complain("interrupted")
        sys.exit(EXIT_INTERRUPT)


# An absolute folder: Hydra would look for a relative one beside the script that was started.
@hydra.main(version_base="1.3", config_path=str(config_dir().resolve()), config_name="scenes")
def _app(raw: DictConfig) -> None:
    chosen = [*HydraConfig.get().overrides.task]
    try:
        config = from_hydra(ScenesConfig, raw)
        results = run_scenes(config, command=shlex.join(["python", "eval/scenes.py", *chosen]))
    except ConfigError as error:
        _complain(str(error))
        sys.exit(EXIT_CONFIG)
    except OSError as error:
        _complain(str(error))
        sys.exit(EXIT_RUN)
    if results.problems:
        _complain(f"{len({clip.file for clip, _, _ in results.problems})} videos cannot be read")
        sys.exit(EXIT_RUN)


def _complain(text: str) -> None:
    print(f"scenes: {' '.join(text.splitlines())}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
