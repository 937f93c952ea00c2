"""A few examples that stand for a data set, where only the size of batches matters.

What is sent to another process is then small, whatever the data set, and may hold open files.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, final

import torch
from torch.utils.data import Dataset

from rightbatch._time import Clock, Deadline, wall_clock
from rightbatch.hardware.templates import own_copy
from rightbatch.hardware.workload import NO_CAP, bytes_in
from rightbatch.task import Task

_MOST, _MOST_BYTES = 256, 64 * 2**20
_SECONDS = 2.0


@final
@dataclass(frozen=True)
class Pool(Dataset[Any]):
    """As many examples as asked for, a few over and over."""

    examples: list[Any]
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        """Return an example; one that the loop changes in place is the loop's own copy."""
        return copy.deepcopy(self.examples[index % len(self.examples)])


def with_pool(task: Task, *, seed: int = 0, clock: Clock = wall_clock) -> Task:
    """Return a task like another one, whose data set is a pool of its examples.

    Args:
        task: Its data set is read for at most two seconds: up to 256 examples or 64 MiB. One that
            fetches whole batches at once has no examples to take: it stays as it is.
        seed: Of the choice.
        clock: Monotonic seconds.

    Example:
        >>> from rightbatch.testing import QuadraticTask
        >>> task = QuadraticTask(examples=1000).task
        >>> pooled = with_pool(task)
        >>> len(pooled.source.dataset), len(pooled.source.dataset.examples)
        (1000, 256)
    """
    if fetches_batches(task):
        return task
    deadline = Deadline(_SECONDS, clock)
    taken: list[Any] = []
    held = 0
    for example in islice(random_examples(task, seed), _MOST):
        taken.append(own_copy(example))
        held += bytes_in(example)
        if held > _MOST_BYTES or deadline.remaining_seconds() <= 0:
            break
    pooled = copy.copy(task)
    length = task.num_examples if task.num_examples is not None else NO_CAP
    pooled.source = replace(task.source, dataset=Pool(taken, length), sampler=None)
    return pooled


def fetches_batches(task: Task) -> bool:
    """Whether the data set makes batches itself, by a ``__getitems__`` that returns no list."""
    fetch = getattr(task.source.dataset, "__getitems__", None)
    return fetch is not None and not isinstance(fetch([next(iter(task.source.order(0)))]), list)


def random_examples(task: Task, seed: int) -> Iterator[Any]:
    """Yield what training draws, in a random order; the examples of a stream as they come."""
    source = task.source
    if task.num_examples is None:
        yield from iter(source.dataset)
        return
    indices = islice(source.order(seed), task.num_examples)
    for index in indices if source.sampler is None else _shuffled(list(indices), seed):
        yield source.dataset[index]


def _shuffled(indices: list[Any], seed: int) -> Iterator[Any]:
    """Shuffle what a sampler of the user's own may yield from the shortest to the longest."""
    generator = torch.Generator().manual_seed(seed)
    for place in torch.randperm(len(indices), generator=generator, device="cpu").tolist():
        yield indices[place]
