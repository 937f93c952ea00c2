"""The course of a race: the batches that every contender trains on, and those it is judged by."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, final

import torch
from torch.utils.data import Subset

from rightbatch.task import Task
from rightbatch.task.data import Source, to_device

_MOST_HELD_OUT = 2048  # examples; their mean is known well enough, and they cost time
_HELD_OUT_SHARE = 5  # at most one example in five is held out
_FEWEST_CHUNKS = 4
_FEWEST_HELD_OUT = 16  # below, all examples are trained on and judged by


@final
@dataclass(frozen=True, slots=True)
class Course:
    """Held-out batches, on the host, and endless training streams."""

    held_out: list[Any]
    stream: Callable[[int], Iterator[Any]]  # lap -> training batches on the device


def lay_out(task: Task, *, size: int, affordable_chunks: int, seed: int) -> Course:
    """Divide a task's examples into held-out batches and training streams.

    A data set that can be indexed is split at random, so that no held-out example is ever
    trained on, however many epochs the race runs. A stream, or a data set with a sampler of its
    own, gives its first batches; they come back once it starts again. Where the rest would not
    fill a batch, examples are both trained on and judged by.

    Args:
        task: What is trained.
        size: Examples per training batch; held-out batches are of this size or smaller.
        affordable_chunks: Held-out batches that the race has time for; at least 4 are taken.
        seed: Of the split and of the order.
    """
    total = task.num_examples
    everything = total or _MOST_HELD_OUT * _HELD_OUT_SHARE
    most = min(_MOST_HELD_OUT, everything // _HELD_OUT_SHARE)
    apart = most >= _FEWEST_HELD_OUT and everything - most >= size
    if not apart:
        most = min(_MOST_HELD_OUT, everything)
    # A chunk of one example would fail in BatchNorm where training at this size does not.
    chunk = max(min(2, size), min(size, most // 8))
    count = max(_FEWEST_CHUNKS, min(affordable_chunks, most // chunk))
    if apart and total is not None and task.source.sampler is None:
        return _split(task, size, chunk, count, seed)
    held_out = islice(task.loader(chunk, seed=seed), count)
    skipped = -(-chunk * count // size) if apart else 0

    def stream(lap: int) -> Iterator[Any]:
        return islice(task.batches(size, seed=seed + lap), skipped, None)

    return Course(list(held_out), stream)


def _split(task: Task, size: int, chunk: int, count: int, seed: int) -> Course:
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(task.source.dataset), generator=generator, device="cpu").tolist()
    held_out, trained = (
        _subset(task.source, part) for part in (order[: chunk * count], order[chunk * count :])
    )

    def stream(lap: int) -> Iterator[Any]:
        for batch in trained.loader(size, seed=seed + lap, epochs=None):
            yield to_device(batch, task.device)

    return Course(list(held_out.loader(chunk, seed=seed, epochs=1)), stream)


def _subset(source: Source, indices: list[int]) -> Source:
    return replace(source, dataset=Subset(source.dataset, indices))
