"""In the place of `python`: a batch whose processes wait, or die, exactly where a test wants them to.

KILL_AFTER_RENAME names a video: the process is killed once it is in place and before the manifest says so.
GATE is a file: the third clip of a process is begun and not made for as long as the file is there.
"""

import os
import runpy
import signal
import sys
import time
from pathlib import Path

from tapvideo.batch.store import Manifest

_append = Manifest.append
_begun: list[str] = []


def _append_wait_or_die(self, event, **values):
    if event == "done" and values["file"] == os.environ.get("KILL_AFTER_RENAME"):
        os.kill(os.getpid(), signal.SIGKILL)
    _append(self, event, **values)
    if event == "begin":
        _begun.append(values["file"])
        while len(_begun) == 3 and Path(os.environ["GATE"]).exists():
            time.sleep(0.1)


if __name__ == "__main__":
    Manifest.append = _append_wait_or_die
    assert sys.argv[1] == "-m"
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
