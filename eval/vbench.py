"""VBench's scores of a folder of videos: `python eval/vbench.py videos=FOLDER`, with the keys of conf/vbench.yaml."""

from tapvideo.cli.vbench import main

if __name__ == "__main__":
    main()
