"""Compare methods at equal compute: `python eval/compare.py preset=quick`, with the keys of conf/compare.yaml."""

from tapvideo.cli.compare import main

if __name__ == "__main__":
    main()
