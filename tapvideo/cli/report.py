"""`python -m tapvideo.cli.report FOLDER`: a comparison's page and plot again, from its `results.json`."""

import argparse
import sys
from pathlib import Path

from tapvideo.report.compare import write_comparison_report
from tapvideo.report.compare_load import ResultsError, read_comparison

EXIT_FAILED = 1


def main(argv: list[str] | None = None) -> None:
    """Entry point; the exit code is 1 where the folder holds no comparison, or cannot be written."""
    parser = argparse.ArgumentParser(prog="python -m tapvideo.cli.report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="what a comparison wrote: results.json, and videos beside it")
    args = parser.parse_args(argv)
    try:
        page = write_comparison_report(args.folder, read_comparison(args.folder))
    except (ResultsError, OSError) as error:
        print(f"tapvideo report: {' '.join(str(error).splitlines())}", file=sys.stderr, flush=True)
        sys.exit(EXIT_FAILED)
    print(page)


if __name__ == "__main__":
    main()
