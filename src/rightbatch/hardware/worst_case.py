"""The batch that needs the most memory: where examples differ in length, of the longest ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, final

import numpy as np
from torch import Tensor
from torch.utils.data import default_collate

from rightbatch._time import Clock, Deadline, wall_clock
from rightbatch.hardware.pool import fetches_batches, random_examples
from rightbatch.hardware.templates import own_copy
from rightbatch.task import Task

_ALIKE = 64  # examples of one length before the others are believed to have it too
_SECONDS = 2.0
_FROM_STREAM = 1000  # examples


@final
@dataclass(frozen=True)
class Repeated:
    """Batches of copies of one example."""

    example: Any
    collate_fn: Callable[[list[Any]], Any]
    elements: int  # in the example
    looked_at: int

    def __call__(self, size: int) -> Any:
        """Collate so many copies; every padded row is then as long as the longest."""
        return self.collate_fn([self.example] * size)


def find_longest(task: Task, *, seed: int = 0, clock: Clock = wall_clock) -> Repeated | None:
    """Look for the longest example, for at most two seconds.

    Args:
        task: Its data set is read, in a random order of its own.
        seed: Of the order.
        clock: Monotonic seconds.

    Returns:
        Batches of copies of it; ``None`` where the first examples are all of one length, or the
        data set makes whole batches itself.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(1, 1)
        >>> sentences = [torch.zeros(length) for length in (3, 9, 4)]
        >>> task = Task(model, torch.optim.SGD(model.parameters(), lr=1.0), sentences, None or max)
        >>> find_longest(task).elements
        9
    """
    if fetches_batches(task):
        return None
    deadline = Deadline(_SECONDS, clock)
    considered = _FROM_STREAM if task.num_examples is None else None
    longest, most, least, seen = None, -1, None, 0
    for example in islice(random_examples(task, seed), considered):
        elements = count_elements(example)
        seen += 1
        if elements > most:
            longest, most = example, elements
        least = elements if least is None else min(least, elements)
        if deadline.remaining_seconds() <= 0 or (seen >= _ALIKE and least == most):
            break
    if longest is None or least == most:
        return None
    collate = task.source.collate_fn or default_collate
    return Repeated(own_copy(longest), collate, most, seen)


def count_elements(example: Any) -> int:
    """Count the numbers in an example.

    Example:
        >>> count_elements({"tokens": [5, 3, 8], "image": np.zeros((2, 2)), "label": 1})
        8
    """
    if isinstance(example, Tensor):
        return example.numel()
    if isinstance(example, np.ndarray):
        return example.size
    if isinstance(example, str | bytes):
        return len(example)
    if isinstance(example, Mapping):
        return sum(count_elements(part) for part in example.values())
    if isinstance(example, Sequence):
        return sum(count_elements(part) for part in example)
    return 1
