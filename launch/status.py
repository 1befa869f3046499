"""What is done, running, failed and missing of a batch: `python launch/status.py FOLDER`."""

from tapvideo.cli.status import main

if __name__ == "__main__":
    main()
