"""What the commands that Hydra configures do alike: exit codes, one line of complaint, an end by signals."""

import signal
import sys
from collections.abc import Callable
from types import FrameType

from tapvideo.console import rank
from tapvideo.parallel.launch import world_size

EXIT_RUN, EXIT_CONFIG = 1, 2
EXIT_INTERRUPT, EXIT_TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM


def enter(app: Callable[[], None], command: str, *, then: str = "") -> None:
    """Run a command's app; Ctrl-C and SIGTERM end it by an exception, so that files half written are removed.

    Args:
        app: raises SystemExit with the exit code, or returns for 0.
        command: its name, which a line of complaint begins with.
        then: what the line about a signal ends with.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except KeyboardInterrupt:
        if rank() == 0:
            complain(command, f"interrupted{then}")
        sys.exit(EXIT_INTERRUPT)
    except SystemExit as end:
        if end.code == EXIT_TERMINATED and rank() == 0:
            # torchrun may end this rank before a collective has failed here
            others = ", as torchrun does where another rank has ended: see its report" if world_size() > 1 else ""
            complain(command, f"told to stop (SIGTERM{others}){then}")
        raise


def complain(command: str, text: str) -> None:
    """Say on stderr what is wrong, in one line."""
    print(f"{command}: {' '.join(text.splitlines())}", file=sys.stderr, flush=True)


def _terminate(signum: int, _frame: FrameType | None) -> None:
    sys.exit(128 + signum)
