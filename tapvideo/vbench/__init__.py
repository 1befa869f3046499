"""Scores of videos in folders, and of one folder against another: VBench, and the drawn world of `wan_tiny`."""
