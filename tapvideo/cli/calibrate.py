"""`tapvideo-calibrate` and `launch/calibrate.py`: Hydra config in, exit code out."""

import shlex
import signal
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from tapvideo.calibrate import CalibrateConfig, run
from tapvideo.cli.batch import as_override
from tapvideo.cli.generate import EXIT_INTERRUPT, exit_code
from tapvideo.config import ConfigError, config_dir, from_hydra
from tapvideo.sample import RunFailed


def main() -> None:
    """Make a calibration; 2 is the exit code for a config error, 130 for Ctrl-C."""
    sys.argv[1:] = [as_override(argument) for argument in sys.argv[1:]]
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        _app()
    except KeyboardInterrupt:
        print("tapvideo-calibrate: interrupted", file=sys.stderr, flush=True)
        sys.exit(EXIT_INTERRUPT)


# An absolute folder: Hydra would look for a relative one beside the script that was started.
@hydra.main(version_base="1.3", config_path=str(config_dir().resolve()), config_name="calibrate")
def _app(raw: DictConfig) -> None:
    try:
        command = shlex.join(["tapvideo-calibrate", *HydraConfig.get().overrides.task])
        run(from_hydra(CalibrateConfig, raw), command=command)
    except (ConfigError, RunFailed) as error:
        print(f"tapvideo-calibrate: {' '.join(str(error).splitlines())}", file=sys.stderr, flush=True)
        sys.exit(exit_code(error))


if __name__ == "__main__":
    main()
