"""What the commands that Hydra configures do alike: exit codes, one line of complaint, an end by signals."""

import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from tapvideo.cli.explain import explain
from tapvideo.console import rank
from tapvideo.parallel.launch import end_if_torn, world_size
from tapvideo.record import package_version

EXIT_RUN, EXIT_CONFIG = 1, 2
EXIT_INTERRUPT, EXIT_TERMINATED, EXIT_PIPE = 128 + signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGPIPE


def enter(app: Callable[[], None], command: str, *, then: str = "") -> None:
    """Run a command's app; Ctrl-C and SIGTERM end it by an exception, so that files half written are removed.

    Args:
        app: raises SystemExit with the exit code, or returns for 0.
        command: its name, which a line of complaint begins with.
        then: what the line about a signal ends with.
    """
    try:
        _to_reader(app, command, then)
    except SystemExit as end:
        end_if_torn(end.code)
        raise


def _to_reader(app: Callable[[], None], command: str, then: str) -> None:
    """Run it; if whoever reads the output has had enough of it, as `head` has at some point, that is no error."""
    try:
        try:
            if "--version" in sys.argv[1:]:  # of which Hydra would tell its own
                print(f"tapvideo {package_version('tapvideo')}")
            else:
                _run(app, command, then)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_has_left():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_PIPE)


def _reader_has_left() -> bool:
    """Whether it was the output's pipe that broke, and not another one."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
    except (OSError, ValueError):  # no file
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _run(app: Callable[[], None], command: str, then: str) -> None:
    signal.signal(signal.SIGTERM, _terminate)
    try:
        with _hydra_raises():
            app()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if _has_begun(error):  # a bug, and no matter of the command line
            raise
        if os.environ.get("LOCAL_RANK", "0") == "0":  # one voice per machine
            complain(command, explain(error))
        sys.exit(EXIT_CONFIG)
    except KeyboardInterrupt:
        if rank() == 0:
            complain(command, f"interrupted{then}")
        sys.exit(EXIT_INTERRUPT)
    except SystemExit as end:
        if end.code == EXIT_TERMINATED and rank() == 0:
            # torchrun may end this rank before a collective has failed here; a scheduler that preempts says so itself
            others = "; if by torchrun, another rank has ended: see its report" if world_size() > 1 else ""
            complain(command, f"told to stop (SIGTERM{others}){then}")
        raise


def _has_begun(error: BaseException) -> bool:
    """Whether the command's own code was reached, and not Hydra alone."""
    frames = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(Path(name).parent == Path(__file__).parent and name != __file__ for name in frames)


@contextmanager
def _hydra_raises() -> Iterator[None]:
    """Otherwise it prints several lines of its own, and exits with 1."""
    key = "HYDRA_FULL_ERROR"
    before = os.environ.get(key)
    os.environ[key] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(key)
        else:
            os.environ[key] = before


def complain(command: str, text: str) -> None:
    """Say on stderr what is wrong, in one line."""
    print(f"{command}: {' '.join(text.splitlines())}", file=sys.stderr, flush=True)


def _terminate(signum: int, _frame: FrameType | None) -> None:
    sys.exit(128 + signum)
