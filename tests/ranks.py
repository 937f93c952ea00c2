"""Run a function on two ranks of a gloo group, each in a process of its own.

results = on_two_ranks(work, "ddp")      # work(comm_rank, "ddp") -> anything JSON holds
"""

import gc
import json
import os
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import multiprocessing

_PATIENCE_SECONDS = 120.0  # a hang becomes a failure


def on_two_ranks(work: Callable[..., Any], *args: Any) -> list[Any]:
    """Return what ``work(rank, *args)`` returned on each rank.

    Args:
        work: A function of a module's top level; it runs with a process group of two.
        args: Picklable.

    Raises:
        TimeoutError: If a rank does not end.
    """
    with tempfile.TemporaryDirectory() as folder:
        spawned = multiprocessing.spawn(_rank, (work, args, folder), nprocs=2, join=False)
        assert spawned is not None
        end = time.monotonic() + _PATIENCE_SECONDS
        while not spawned.join(timeout=1.0):
            if time.monotonic() > end:
                for process in spawned.processes:
                    process.kill()
                raise TimeoutError(f"two ranks did not end in {_PATIENCE_SECONDS:.0f} s")
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(2)]


def _rank(rank: int, work: Callable[..., Any], args: tuple[Any, ...], folder: str) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    try:
        Path(folder, f"{rank}.json").write_text(json.dumps(work(rank, *args)))
        dist.barrier()  # neither leaves while the other may still talk to it
    finally:
        gc.collect()  # a wrapped model that still refers to the group would outlive it
        dist.destroy_process_group()
    os._exit(0)  # the group's threads may abort the interpreter's teardown, which is not tested
