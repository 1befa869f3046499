"""Functions on several gloo ranks, forked from the warm process: a second each instead of half a minute."""

import multiprocessing as mp
import os
import pickle
import queue
import tempfile
import time
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

_TIMEOUT = 90.0


def run_ranks(ranks, function, *args):
    """`function(*args)` on every rank of a gloo group; results by rank, and one rank's error as an assertion."""
    context = mp.get_context("fork")
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        workers = [
            context.Process(target=_work, args=(rank, ranks, str(store), function, args, results), daemon=True)
            for rank in range(ranks)
        ]
        for worker in workers:
            worker.start()
        try:
            found = _collect(results, ranks)
        finally:
            for worker in workers:
                worker.join(5)
                worker.kill()
    errors = {rank: value for rank, (status, value) in sorted(found.items()) if status == "error"}
    assert not errors, "\n".join(f"--- rank {rank}\n{text}" for rank, text in errors.items())
    return [pickle.loads(found[rank][1]) for rank in range(ranks)]


def _collect(results, ranks):
    found = {}
    until = time.monotonic() + _TIMEOUT
    while len(found) < ranks:
        try:
            rank, *rest = results.get(timeout=max(0.1, until - time.monotonic()))
        except queue.Empty:
            missing = [r for r in range(ranks) if r not in found]
            raise AssertionError(f"ranks {missing} did not answer in {_TIMEOUT:g} s; answers: {found}") from None
        found[rank] = tuple(rest)
    return found


def _work(rank, ranks, store, function, args, results):
    torch.set_num_threads(1)  # a forked child of a process that used OpenMP hangs with more
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=ranks, timeout=timedelta(seconds=60)
        )
        value = function(*args)
        dist.barrier()
        dist.destroy_process_group()
        results.put((rank, "ok", pickle.dumps(value)))  # by value: shared memory would end with this process
    except BaseException:
        results.put((rank, "error", traceback.format_exc()))
    results.close()
    results.join_thread()
    os._exit(0)  # past the exit handlers that were inherited from pytest
