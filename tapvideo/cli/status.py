"""`tapvideo-status` and `launch/status.py`: how far a batch is."""

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tapvideo.batch.status import BatchStatus, read_status
from tapvideo.checks import ConfigError

EXIT_RUN, EXIT_CONFIG, EXIT_INTERRUPT = 1, 2, 128 + signal.SIGINT
_MOST = 10  # shards and errors in the short form
_CLEAR = "\x1b[2J\x1b[H"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the status of a batch; 2 is the exit code for a folder that is none, 1 with --complete for an open one."""
    parser = argparse.ArgumentParser(prog="tapvideo-status", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of a batch, or its folder of videos")
    parser.add_argument("--json", action="store_true", help="a line of json, with every shard and error")
    parser.add_argument("--watch", action="store_true", help="again and again, until nothing is left to do")
    parser.add_argument(
        "--every", type=float, default=5.0, metavar="SECONDS", help="how often with --watch (default 5)"
    )
    parser.add_argument("--complete", action="store_true", help="exit code 1 unless every clip is there")
    arguments = parser.parse_args(argv)
    try:
        status = _show(arguments)
    except ConfigError as error:
        print(f"tapvideo-status: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(EXIT_CONFIG)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPT)
    sys.exit(EXIT_RUN if arguments.complete and status.done < status.clips else 0)


def _show(arguments: argparse.Namespace) -> BatchStatus:
    while True:
        status = read_status(arguments.folder)
        clear = _CLEAR if arguments.watch and sys.stdout.isatty() and not arguments.json else ""
        print(clear + (json.dumps(status.as_dict()) if arguments.json else describe(status)), flush=True)
        if not arguments.watch or not (status.missing or status.running):
            return status
        time.sleep(arguments.every)


def describe(status: BatchStatus) -> str:
    """A status for people."""
    shares = f"{status.done} done, {status.running} running, {status.failed} failed, {status.missing} missing"
    lines = [status.folder, f"{status.clips} clips: {shares}"]
    if status.clips_per_hour:
        idle = any(s.missing and s.state not in ("running", "loading") for s in status.shards)
        unknown = "unknown, some shards do not run" if idle else "not known yet"
        left = unknown if status.seconds_left is None else duration(status.seconds_left)
        lines.append(f"{status.clips_per_hour:.1f} clips an hour; left: {left}")
    lines.append(
        f"\n{'shard':>5}  {'state':<9}  {'done':>11}  {'failed':>6}  {'an hour':>7}  {'left':>7}  host, job, clip"
    )
    for shard in status.shards:
        rate = f"{shard.clips_per_hour:.1f}" if shard.clips_per_hour else "-"
        left = duration(shard.seconds_left) if shard.seconds_left is not None else "-"
        where = ", ".join(filter(None, [shard.host, shard.job, *shard.running]))
        done = f"{shard.done}/{shard.clips}"
        lines.append(
            f"{shard.shard:>5}  {shard.state:<9}  {done:>11}  {shard.failed:>6}  {rate:>7}  {left:>7}  {where}"
        )
    errors = list(status.errors.items())
    lines += [f"failed: {file}: {error}" for file, error in errors[:_MOST]]
    if len(errors) > _MOST:
        lines.append(f"... and {len(errors) - _MOST} more (--json has all)")
    if status.strangers:
        lines.append(f"not of this batch: {', '.join(status.strangers[:_MOST])}")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Seconds as a person says them: ``45 s``, ``12 min``, ``3 h 20``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d}"


if __name__ == "__main__":
    main()
