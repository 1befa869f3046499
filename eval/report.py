"""The page and the plot of a comparison again: `python eval/report.py FOLDER`."""

from tapvideo.cli.report import main

if __name__ == "__main__":
    main()
