"""The run of one shard: one clip after the other, by one process or by ranks that share each clip."""

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from tapvideo.batch.config import BatchConfig, clip_facts, run_path
from tapvideo.batch.items import Item, read_items
from tapvideo.batch.shard import Books, Outcome, Result, file_digest, open_books
from tapvideo.batch.store import BatchFolder, Shard
from tapvideo.checks import ConfigError
from tapvideo.console import Console, rank
from tapvideo.generate import open_session
from tapvideo.outputs import Made, write_clip
from tapvideo.parallel.comm import PeerLost
from tapvideo.parallel.launch import joined
from tapvideo.parallel.topology import Topology
from tapvideo.pipeline import resolve_device
from tapvideo.record import device_name, package_versions
from tapvideo.resolve import resolve
from tapvideo.run_folder import Job
from tapvideo.sample import RunFailed
from tapvideo.schedulers import plan_steps
from tapvideo.weights import check_sizes, find_configs, find_weights, fingerprint_weights

Value = TypeVar("Value")


@runtime_checkable
class ClipMaker(Protocol):
    """What makes the clips; `generate.Session` does."""

    def make_clip(self, job: Job) -> Made:
        """One clip, by all ranks of its group together."""
        ...


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch that can be made: its config has passed every check that needs no device."""

    config: BatchConfig
    items: list[Item]
    folder: BatchFolder
    facts: dict[str, Any]

    @property
    def shard(self) -> Shard:
        """What this process makes of it."""
        return Shard(self.config.shard, self.config.shards)


def prepare(config: BatchConfig) -> Batch:
    """Check everything that can be checked before there is a GPU; writes nothing.

    Raises:
        ConfigError: if a list, the schedule, a size, the weights or the folder do not allow this batch.
    """
    items = read_items(config.prompt_file, config.seeds, suffix=config.kind.suffix)
    config = resolve(config)
    plan_steps(config)
    check_sizes(config, find_configs(config.model))
    folder = BatchFolder(run_path(config, items))
    facts = {**clip_facts(config, items), "weights": fingerprint_weights(find_weights(config.model))}
    folder.check(facts)
    return Batch(config, items, folder, facts)


def run(config: BatchConfig, *, command: str = "", should_stop: Callable[[], bool] = lambda: False) -> Outcome:
    """Make what is missing of one shard. Under `torchrun` the ranks share the work as `config.parallel` says.

    Args:
        config: what to make, and which shard of it.
        command: the command line, for the record.
        should_stop: asked before every clip, on rank 0.

    Returns:
        How the shard ended.

    Raises:
        ConfigError: if the config asks for what is not possible here, or the folder is of another one.
        ShardLocked: if another process works on these clips.
        RankFailed: among several ranks, for all of this on the first one that it happens to; `Hushed` on the others.
    """
    batch = prepare(config)
    config = batch.config
    console = Console(verbose=True)
    if config.dry_run:
        _print_items(batch, console)
        return Outcome.DONE
    device, versions = resolve_device(config), package_versions()
    facts = {**config.as_dict(), "prompts": batch.facts["prompts"], "versions": versions}
    with joined(config.parallel, device, facts) as topology, ExitStack() as stack:
        books = None
        if rank() == 0:
            batch.folder.claim(batch.facts, batch.items, {"command": command, "versions": versions})
            stop = _stopper(config, batch.folder, should_stop)
            noted = {"device": device_name(device), "ranks": topology.world.size, "versions": versions}
            books = stack.enter_context(
                open_books(
                    batch.folder, batch.shard, batch.items, should_stop=stop, give_up=config.give_up, facts=noted
                )
            )
            console.say(f"{batch.folder.root}: shard {batch.shard}, {books.num_done} of {books.total} clips are there")
        outcome = tell(topology, books.next(0) if books else None)
        if not isinstance(outcome, Outcome):  # else nothing is loaded
            session = open_session(config, plan_steps(config), topology, console, bars=config.verbose)
            outcome = make_clips(batch, session, topology, books, console)
        if books:
            console.say(f"shard {batch.shard} {books.end(outcome)}")
        return outcome


def make_clips(batch: Batch, maker: ClipMaker, topology: Topology, books: Books | None, console: Console) -> Outcome:
    """One round after the other, a clip for each data-parallel group; rank 0, which has the books, decides for all."""
    while True:
        decided = tell(topology, books.next(topology.dp.size) if books else None)
        if isinstance(decided, Outcome):
            return decided
        assert decided is not None  # rank 0 has the books
        item = decided[topology.dp.rank] if topology.dp.rank < len(decided) else None
        result = _make(batch, maker, topology, item, books) if item else None
        if not topology.is_writer:
            continue
        for found in topology.dp.exchange_objects(result):
            if found and books:
                books.note(found)
                console.say(_describe(found, books))


def tell(topology: Topology, value: Value) -> Value:
    """Rank 0's value, on every rank.

    It goes first to the groups of other clips, which may wait for as long as a clip takes, then inside each of them.
    """
    return topology.clip.exchange_objects(topology.dp.exchange_objects(value)[0])[0]


def _make(batch: Batch, maker: ClipMaker, topology: Topology, item: Item, books: Books | None) -> Result:
    """One clip, made by all ranks of its group and put in place by their first."""
    error = made = None
    try:
        made = maker.make_clip(Job(item.prompt, item.seed, str(topology.dp.rank)))
    except (ConfigError, PeerLost):  # the former would be every clip's
        raise
    except RunFailed as failed:  # from latents, which are the same on all ranks of the clip
        error = _words(failed)
    except Exception as failed:
        error = _words(failed)
        if not topology.is_alone:  # the others wait in a collective: this process is over, and tries this clip last
            if books:
                books.note(Result(item, error=error))
            raise
    errors = [e for e in topology.clip.exchange_objects(error) if e]
    if errors or made is None or not topology.is_writer:
        return Result(item, error=errors[0] if errors else None)
    try:
        return _write(batch, made, item, folder=str(topology.dp.rank))
    except (OSError, ValueError) as failed:
        return Result(item, error=_words(failed))


def _write(batch: Batch, made: Made, item: Item, *, folder: str) -> Result:
    work = batch.folder.work(batch.shard)
    try:
        clip = write_clip(work, Job(item.prompt, item.seed, folder), made, batch.config)
        video = work / clip.video
        result = Result(item, asdict(clip.seconds), video.stat().st_size, file_digest(video))
        batch.folder.publish(video, item)
    finally:
        shutil.rmtree(work / folder, ignore_errors=True)
    return result


def _stopper(config: BatchConfig, folder: BatchFolder, asked: Callable[[], bool]) -> Callable[[], bool]:
    files = [folder.stop, *([Path(config.stop_file)] if config.stop_file else [])]
    return lambda: asked() or any(file.exists() for file in files)


def _describe(result: Result, books: Books) -> str:
    progress = f"[{books.num_done + books.num_failed}/{books.total}]"
    if result.error is not None:
        return f"{progress} {result.item.file}: FAILED: {result.error}"
    return f"{progress} {result.item.file}: " + ", ".join(f"{k} {v:.2f} s" for k, v in result.seconds.items())


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _print_items(batch: Batch, console: Console) -> None:
    own, folder = batch.shard.of(batch.items), batch.folder
    for item in own:
        there = "there" if (folder.videos / item.file).is_file() else "to do"
        console.say(f"{there}  seed {item.seed}  {item.file}")
    prompts = len({item.prompt for item in batch.items})
    console.say(f"{folder.root}: {prompts} prompts, {len(batch.items)} clips, {len(own)} in shard {batch.shard}")
