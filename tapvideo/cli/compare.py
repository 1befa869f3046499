"""`eval/compare.py`: Hydra config in, exit code out."""

import shlex
import signal
import sys
from types import FrameType

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from tapvideo.compare import run
from tapvideo.compare.config import CompareConfig
from tapvideo.config import ConfigError, config_dir, from_hydra
from tapvideo.sample import RunFailed

EXIT_RUN, EXIT_CONFIG, EXIT_INTERRUPT = 1, 2, 128 + signal.SIGINT


def main() -> None:
    """Compare methods; 2 is the exit code for a config error, 130 for Ctrl-C and 143 for SIGTERM."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        _app()
    except KeyboardInterrupt:
        _complain("interrupted; the same command goes on from here")
        sys.exit(EXIT_INTERRUPT)


# An absolute folder: Hydra would look for a relative one beside the script that was started.
@hydra.main(version_base="1.3", config_path=str(config_dir().resolve()), config_name="compare")
def _app(raw: DictConfig) -> None:
    try:
        chosen = [*HydraConfig.get().overrides.task]
        run(from_hydra(CompareConfig, raw), command=shlex.join(["python", "eval/compare.py", *chosen]))
    except ConfigError as error:
        _complain(str(error))
        sys.exit(EXIT_CONFIG)
    except RunFailed as error:
        _complain(str(error))
        sys.exit(EXIT_RUN)


def _complain(text: str) -> None:
    print(f"compare: {' '.join(text.splitlines())}", file=sys.stderr, flush=True)


def _terminate(signum: int, _frame: FrameType | None) -> None:
    """As an exception, so that files half written are removed on the way out."""
    sys.exit(128 + signum)


if __name__ == "__main__":
    main()
