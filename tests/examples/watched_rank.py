"""One rank of the data-parallel example, watched, and killed where a test says so.

    torchrun --nproc-per-node 2 tests/examples/watched_rank.py FOLDER KILL_AFTER [the example's own]

Writes FOLDER/RANK.json: the rows of each epoch, the moves, and the weights at the end. Rank 1 is
killed right after so many optimizer steps; 0: never.
"""

import hashlib
import importlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

import rightbatch as rb

EXAMPLES = Path(__file__).parents[2] / "examples"


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().numpy().tobytes()).hexdigest()


def main(folder: Path, kill_after: int) -> None:
    sys.path.insert(0, str(EXAMPLES))
    example: Any = importlib.import_module("start_small_and_grow_ddp")
    rank = int(os.environ["RANK"])
    rows: dict[int, list[str]] = {}
    optimizers: list[Optimizer] = []

    def step_ended(optimizer: Optimizer, *_: Any) -> None:
        optimizers.append(optimizer)
        if rank == 1 and len(optimizers) == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    def follow(sampler: rb.BatchSizeSampler, loader: Any) -> Iterator[Any]:
        for batch in followed(sampler, loader):
            rows.setdefault(sampler.epoch, []).extend(digest(row) for row in batch[0])
            yield batch

    def watched(*arguments: Any) -> rb.BatchSizeController:
        controller = train(*arguments)
        weights = [p for group in optimizers[-1].param_groups for p in group["params"]]
        found = {
            "rows": rows,
            "moves": [str(move) for move in controller.moves],
            "weights": [digest(weight) for weight in weights],
        }
        (folder / f"{rank}.json").write_text(json.dumps(found))
        return controller

    register_optimizer_step_post_hook(step_ended)
    followed = rb.BatchSizeSampler.follow
    rb.BatchSizeSampler.follow = follow  # pyright: ignore - another name for `self`
    train, example.train = example.train, watched
    example.main()


if __name__ == "__main__":
    where, steps = sys.argv[1:3]
    del sys.argv[1:3]
    main(Path(where), int(steps))
