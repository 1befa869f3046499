"""`tapvideo-calibrate` and `launch/calibrate.py`: Hydra config in, exit code out."""

import shlex
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from tapvideo.calibrate import CalibrateConfig, run
from tapvideo.cli.batch import as_override
from tapvideo.cli.entry import complain, enter
from tapvideo.cli.generate import exit_code
from tapvideo.config import ConfigError, config_dir, from_hydra
from tapvideo.sample import RunFailed

_NAME = "tapvideo-calibrate"


def main() -> None:
    """Make a calibration; 2 is the exit code for a config error, 130 for Ctrl-C and 143 for SIGTERM."""
    sys.argv[1:] = [as_override(argument) for argument in sys.argv[1:]]
    enter(_app, _NAME)


# An absolute folder: Hydra would look for a relative one beside the script that was started.
@hydra.main(version_base="1.3", config_path=str(config_dir().resolve()), config_name="calibrate")
def _app(raw: DictConfig) -> None:
    try:
        command = shlex.join([_NAME, *HydraConfig.get().overrides.task])
        run(from_hydra(CalibrateConfig, raw), command=command)
    except (ConfigError, RunFailed) as error:
        complain(_NAME, str(error))
        sys.exit(exit_code(error))


if __name__ == "__main__":
    main()
