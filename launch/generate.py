"""Generate videos: `python launch/generate.py prompt="..."`, with the keys of conf/generate.yaml."""

from tapvideo.cli.generate import main

if __name__ == "__main__":
    main()
