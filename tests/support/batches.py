"""A batch of four prompts on a tiny model, and a maker of grey clips in its pipeline's place."""

import os

import torch
from hydra import compose, initialize_config_dir

from tapvideo.batch.config import BatchConfig
from tapvideo.batch.run import make_clips, prepare
from tapvideo.batch.shard import open_books
from tapvideo.batch.store import read_events
from tapvideo.config import config_dir, from_hydra
from tapvideo.console import Console
from tapvideo.outputs import Made
from tapvideo.parallel.topology import alone
from tapvideo.sample import RunFailed, Sample, StageSeconds

QUIET = Console(verbose=False)
PROMPTS = ["a/b", "..", "a red circle", "A red circle"]


def overrides_of(saved_pipeline, tmp_path):
    """What names a batch of these prompts."""
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return [
        f"model.weights={saved_pipeline}", f"output_dir={tmp_path / 'out'}", "model.name=random", "height=32",
        "width=32", "num_frames=5", "steps=2", f"prompt_file={path}", "name=run",
    ]  # fmt: skip


def batch_config(*overrides):
    """With the paper's method, unless another is asked for."""
    if not any(override.startswith("tap=") for override in overrides):
        overrides = ("tap=paper", *overrides)
    with initialize_config_dir(str(config_dir().resolve()), version_base="1.3"):
        return from_hydra(BatchConfig, compose("batch", list(overrides)))


def begun(overrides):
    """A batch whose folder is there."""
    batch = prepare(batch_config(*overrides, "seeds=[0,1]"))
    batch.folder.claim(batch.facts, batch.items, {})
    return batch


class Maker:
    """Grey clips at once; fails for prompts that it is told to fail for."""

    def __init__(self, bad=(), error=None):
        self.bad, self.made = bad, []
        self.error = error or RunFailed("NaN or infinite latents")

    def make_clip(self, job):
        self.made.append((job.prompt, job.seed))
        if job.prompt in self.bad:
            raise self.error
        frames = torch.full((5, 32, 32, 3), 0.1 * job.seed)
        return Made(Sample(frames, torch.zeros(1, 4, 2, 4, 4), StageSeconds(0.0, 1.0, 0.0)), None, None, [], [])


def make(batch, maker, *, stop=lambda: False, shard=None, give_up=5):
    """Make a shard's clips."""
    shard = shard or batch.shard
    with open_books(batch.folder, shard, batch.items, should_stop=stop, give_up=give_up, facts={}) as books:
        outcome = make_clips(batch, maker, alone(), books, QUIET)
        books.end(outcome)
    return outcome


def events(batch, *kinds, shard=None):
    """Files of a manifest's events of these kinds."""
    found = read_events(batch.folder.manifest(shard or batch.shard))
    return [event["file"] for event in found if event["event"] in kinds]


def videos(batch):
    """Names of the files that are there."""
    return sorted(os.listdir(batch.folder.videos))
