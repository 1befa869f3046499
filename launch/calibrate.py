"""A calibration for tap=default: `python launch/calibrate.py model=wan`, with the keys of conf/calibrate.yaml."""

from tapvideo.cli.calibrate import main

if __name__ == "__main__":
    main()
