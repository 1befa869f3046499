"""A list of prompts to videos: `python launch/batch.py prompts=FILE seeds=[0,1]`, with the keys of conf/batch.yaml."""

from tapvideo.cli.batch import main

if __name__ == "__main__":
    main()
