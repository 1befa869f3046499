"""In the place of `python`: a batch that is killed between the rename of one video and its line in the manifest.

KILL_AFTER_RENAME names the video; SECONDS_PER_CLIP keeps clips of this size from being over before anybody looks.
"""

import os
import runpy
import signal
import sys
import time

from tapvideo.batch.store import Manifest

_append = Manifest.append


def _append_or_die(self, event, **values):
    if event == "done" and values["file"] == os.environ.get("KILL_AFTER_RENAME"):
        os.kill(os.getpid(), signal.SIGKILL)
    _append(self, event, **values)
    if event == "begin":
        time.sleep(float(os.environ.get("SECONDS_PER_CLIP", "0")))


if __name__ == "__main__":
    Manifest.append = _append_or_die
    assert sys.argv[1] == "-m"
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
