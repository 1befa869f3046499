"""Check a run and give it to SLURM: `python launch/submit.py batch prompts=FILE shards=8 --partition=gpu --dry-run`."""

from tapvideo.cli.submit import main

if __name__ == "__main__":
    main()
