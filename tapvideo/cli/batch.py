"""`tapvideo-batch` and `launch/batch.py`: Hydra config in, exit code out."""

import os
import shlex
import signal
import sys
import traceback
from types import FrameType

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from tapvideo.batch.config import BatchConfig
from tapvideo.batch.run import run
from tapvideo.batch.shard import Outcome
from tapvideo.batch.store import ShardLocked
from tapvideo.cli.entry import EXIT_CONFIG, EXIT_RUN, complain, enter
from tapvideo.cli.generate import quote_text
from tapvideo.config import ConfigError, config_dir, from_hydra
from tapvideo.parallel.comm import PeerLost
from tapvideo.parallel.launch import Hushed, RankFailed
from tapvideo.sample import RunFailed

_NAME = "tapvideo-batch"
EXIT_STOPPED, EXIT_LOCKED = 3, 4
EXITS = {Outcome.DONE: 0, Outcome.FAILED: EXIT_RUN, Outcome.STOPPED: EXIT_STOPPED}
_FORESEEN = (ConfigError, PeerLost, RunFailed, ShardLocked)


class _Asked:
    """Whether SIGUSR1 has asked to stop before the next clip."""

    def __init__(self) -> None:
        self.to_stop = False

    def __call__(self) -> bool:
        return self.to_stop

    def listen(self) -> None:
        signal.signal(signal.SIGUSR1, self._hear)

    def _hear(self, _signum: int, _frame: FrameType | None) -> None:
        self.to_stop = True


def main() -> None:
    """Make one shard of a batch.

    Exit codes: 0 all clips are there, 1 some failed, 2 config error, 3 told to stop (SIGUSR1, a stop file), 4 another
    process is at these clips, 130 Ctrl-C, 143 SIGTERM. After 1, 3, 130 and 143 the same command goes on.
    """
    sys.argv[1:] = [as_override(argument) for argument in sys.argv[1:]]
    enter(_app, _NAME, then="; the same command goes on from here")


def as_override(argument: str) -> str:
    """An argument as Hydra takes it; `prompts` is short for `prompt_file`."""
    key, equals, value = argument.partition("=")
    return f"prompt_file={value}" if equals and key == "prompts" else quote_text(argument)


# An absolute folder: Hydra would look for a relative one beside the script that was started.
@hydra.main(version_base="1.3", config_path=str(config_dir().resolve()), config_name="batch")
def _app(raw: DictConfig) -> None:
    asked = _Asked()
    asked.listen()
    try:
        command = shlex.join([_NAME, *HydraConfig.get().overrides.task])
        outcome = run(from_hydra(BatchConfig, raw), command=command, should_stop=asked)
    except _FORESEEN as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # before ranks have joined: one voice per machine
            complain(_NAME, str(error))
        sys.exit(_exit_code(error))
    except RankFailed as failed:
        if not isinstance(failed.error, _FORESEEN):
            traceback.print_exception(failed.error)
        complain(_NAME, str(failed))
        sys.exit(_exit_code(failed.error))
    except Hushed:
        sys.exit(EXIT_RUN)
    sys.exit(EXITS[outcome])


def _exit_code(error: Exception) -> int:
    if isinstance(error, ShardLocked):
        return EXIT_LOCKED
    return EXIT_CONFIG if isinstance(error, ConfigError) else EXIT_RUN


if __name__ == "__main__":
    main()
