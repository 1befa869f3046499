"""Runs inside VBench's own environment, as a script: what is installed there, and the scores of one dimension.

It imports nothing of tapvideo, and runs on Python 3.10. `worker.py locate` and `worker.py describe DIMENSION...` print
one JSON object; `worker.py score JOB.json` appends a line of JSON a video to the job's file, and exits with 3 where a
video could not be scored, 4 where another process works on the same file.
"""

import contextlib
import fcntl
import importlib
import importlib.metadata
import importlib.util
import json
import math
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any

EXIT_UNSCORED, EXIT_LOCKED = 3, 4
_PERCENT = ("imaging_quality",)  # per video 0..100, where VBench's own mean is 0..1
_MAY_SKIP = {"color": "VBench leaves it out of the mean: the object was found in no frame"}
_MARKER = "VBENCH-DESCRIBES "


def main(argv: list[str]) -> int:
    """Entry point."""
    command, *rest = argv
    if command == "locate":
        print(_MARKER + json.dumps(locate()), flush=True)
        return 0
    _library = declare_missing_operators()  # torch forgets what a library defines once the library is collected
    if command == "describe":
        print(_MARKER + json.dumps(describe(rest)), flush=True)  # imports print, too
        return 0
    with open(rest[0], encoding="utf-8") as file:
        job = json.load(file)
    return score(job)


def locate() -> dict[str, Any]:
    """Version and list of prompts of the package, which is not imported for it."""
    spec = importlib.util.find_spec("vbench")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("no package vbench")
    suite = os.path.join(os.path.dirname(spec.origin), "VBench_full_info.json")
    return {"vbench": importlib.metadata.version("vbench"), "suite": suite}


def describe(dimensions: list[str]) -> dict[str, Any]:
    """Versions, the device, and why dimensions cannot be imported."""
    import torch

    errors = {}
    for dimension in dimensions:
        try:
            importlib.import_module(f"vbench.{dimension}")
        except Exception as error:
            errors[dimension] = f"{type(error).__name__}: {error}"
    return {
        "torch": torch.__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "errors": errors,
    }


def declare_missing_operators() -> Any:
    """Make a torchvision that was built for CUDA importable beside a CPU build of torch.

    Its Python side describes two operators that only its CUDA library defines; nothing here calls them. Returns what
    holds the definitions, or None where none were needed.
    """
    import torch

    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        if torch.version.cuda is not None:
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")
        return library
    return None


def score(job: dict[str, Any]) -> int:
    """Score the videos of a job, `batch` at a time: what is written stays written, whatever comes after."""
    with open(job["out"], "a+b") as out:
        try:
            fcntl.lockf(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return EXIT_LOCKED
        _end_torn_line(out)
        compute, device = load(job)
        unscored, items, size = 0, job["items"], job["batch"]
        for start in range(0, len(items), size):
            lines = score_batch(job["dimension"], items[start : start + size], compute)
            unscored += sum(line["error"] is not None for line in lines)
            for line in lines:
                out.write((json.dumps({**job["stamp"], "device": device, **line}) + "\n").encode())
            out.flush()
            os.fsync(out.fileno())
            print(f"{job['dimension']}: {min(start + size, len(items))} of {len(items)} videos", flush=True)
    return EXIT_UNSCORED if unscored else 0


def load(job: dict[str, Any]) -> tuple[Callable[[list[dict[str, Any]]], list[dict[str, Any]]], str]:
    """VBench's function for a dimension, from a list of its own information to its results per video."""
    import torch

    utils: Any = importlib.import_module("vbench.utils")
    dimension = job["dimension"]
    module = importlib.import_module(f"vbench.{dimension}")
    device = torch.device(job["device"])
    submodules = utils.init_submodules([dimension], local=True)[dimension]

    def compute(infos: list[dict[str, Any]]) -> list[dict[str, Any]]:
        with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
            json.dump(infos, file)
        try:
            return getattr(module, f"compute_{dimension}")(file.name, device, submodules)[1]
        finally:
            os.unlink(file.name)

    return compute, torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def score_batch(
    dimension: str, items: list[dict[str, Any]], compute: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """A line for each video; where VBench fails on some video of several, each is tried alone."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        infos = [_info(dimension, item, number, folder) for number, item in enumerate(items)]
        try:
            found = {result["video_path"]: result for result in compute(infos)}
        except Exception as error:
            traceback.print_exc()
            if len(items) > 1:
                return [line for item in items for line in score_batch(dimension, [item], compute)]
            return [_line(items[0], None, f"{type(error).__name__}: {error}"[:300], started, 1)]
    lines = []
    for item, info in zip(items, infos, strict=True):
        value, error = read_score(dimension, found.get(info["video_list"][0]))
        lines.append(_line(item, value, error, started, len(items)))
    return lines


def read_score(dimension: str, result: dict[str, Any] | None) -> tuple[float | None, str | None]:
    """Score in 0..1 of one of VBench's results, or why there is none; neither where VBench leaves a video out."""
    if result is None:
        return None, None if dimension in _MAY_SKIP else "VBench could not read it, and says no more"
    value = float(result["video_results"]) / (100 if dimension in _PERCENT else 1)
    return (value, None) if math.isfinite(value) else (None, f"VBench's score is {value}")


def _info(dimension: str, item: dict[str, Any], number: int, folder: str) -> dict[str, Any]:
    """What VBench reads of a video. human_action takes the label from the file's name, so the name is the prompt's."""
    os.makedirs(os.path.join(folder, str(number)))
    name = item["prompt"].replace("/", " ").replace("\0", " ").encode()[:200].decode(errors="ignore")
    link = os.path.join(folder, str(number), f"{name}-0.mp4" if dimension == "human_action" else "video.mp4")
    os.symlink(os.path.abspath(item["path"]), link)
    info = {"prompt_en": item["prompt"], "dimension": [dimension], "video_list": [link]}
    if item.get("auxiliary_info"):
        info["auxiliary_info"] = item["auxiliary_info"]
    return info


def _line(item: dict[str, Any], value: float | None, error: str | None, started: float, count: int) -> dict[str, Any]:
    seconds = round((time.monotonic() - started) / count, 3)
    return {"sha256": item["sha256"], "prompt": item["prompt"], "score": value, "error": error, "seconds": seconds}


def _end_torn_line(out: Any) -> None:
    """A process that was killed may have left half a line, which readers skip; the next begins on its own."""
    size = out.seek(0, os.SEEK_END)
    if size:
        out.seek(size - 1)
        if out.read(1) != b"\n":
            out.write(b"\n")


if __name__ == "__main__":
    # Started as a script, the folder of this file comes first on the path, and its modules would hide others'.
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != os.path.dirname(os.path.abspath(__file__))]
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:]))
    sys.exit(130)
