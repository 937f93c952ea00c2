"""The batch that needs the most memory: where examples differ in length, of the longest ones."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, cycle, islice
from typing import Any, final

import numpy as np
from torch import Tensor
from torch.utils.data import default_collate

from rightbatch._time import Clock, Deadline, wall_clock
from rightbatch.hardware.pool import fetches_batches, random_examples
from rightbatch.hardware.templates import own_copy
from rightbatch.hardware.workload import bytes_in
from rightbatch.task import Task

_ALIKE = 64  # examples of one length before the others are believed to have it too
_SECONDS = 2.0
_FROM_STREAM = 1000  # examples
_MOST_PARTS = 8  # of an example: at most nine are long in some way, and 45 pairs of them


@final
@dataclass(frozen=True)
class Repeated:
    """Batches of copies of one example, or of two by turns."""

    examples: tuple[Any, ...]
    collate_fn: Callable[[list[Any]], Any]
    elements: int  # in the longest example
    looked_at: int

    @property
    def note(self) -> str:
        """What batches are made of, in words."""
        what = "copies of the longest"
        if len(self.examples) > 1:
            what = "two examples by turns, which have the longest parts"
        return (
            f"Examples differ in length: batches are made of {what} of {self.looked_at:,} that "
            f"were looked at (the longest has {self.elements:,} elements)."
        )

    def __call__(self, size: int) -> Any:
        """Collate so many copies; every padded row is then as long as the longest."""
        return self.collate_fn(list(islice(cycle(self.examples), size)))


def find_longest(task: Task, *, seed: int = 0, clock: Clock = wall_clock) -> Repeated | None:
    """Look for the longest example, for at most two seconds.

    Where an example has several parts, such as a source and its translation, and each is padded by
    itself, the longest source may belong to another example than the longest translation: those two
    take turns where their batch holds more than one of the longest example alone.

    Args:
        task: Its data set is read, in a random order of its own.
        seed: Of the order.
        clock: Monotonic seconds.

    Returns:
        Batches of copies of it, or of two examples; ``None`` where the first examples are all of
        one length, or the data set makes whole batches itself.

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
    longest = _Longest()
    for example in islice(random_examples(task, seed), considered):
        longest.see(example)
        if deadline.remaining_seconds() <= 0 or (longest.seen >= _ALIKE and not longest.differ):
            break
    if not longest.differ:
        return None
    collate = task.source.collate_fn or default_collate
    examples = _fullest([own_copy(example) for example in longest.examples()], collate)
    return Repeated(examples, collate, longest.most["all"], longest.seen)


@final
class _Longest:
    """The longest examples so far: of all, and by each part."""

    def __init__(self) -> None:
        self.seen = 0
        self.most: dict[Any, int] = {}
        self._least: dict[Any, int] = {}
        self._holders: dict[Any, Any] = {}

    @property
    def differ(self) -> bool:
        return self.most != self._least

    def see(self, example: Any) -> None:
        self.seen += 1
        lengths = {"all": count_elements(example)}
        parts = enumerate(_parts(example))
        lengths |= {index: count_elements(part) for index, part in parts}
        for key, length in lengths.items():
            self._least[key] = min(length, self._least.get(key, length))
            if length > self.most.get(key, -1):
                self.most[key], self._holders[key] = length, example

    def examples(self) -> list[Any]:
        """Return the longest first, and each example once."""
        found = {id(example): example for example in self._holders.values()}
        return list(found.values())


def _fullest(examples: list[Any], collate: Callable[[list[Any]], Any]) -> tuple[Any, ...]:
    """Choose the example, or the two of them, whose batch holds the most bytes."""
    if len(examples) == 1:
        return (examples[0],)
    pairs = combinations_with_replacement(examples, 2)
    first, second = max(pairs, key=lambda pair: bytes_in(collate(list(pair))))
    return (first,) if first is second else (first, second)


def _parts(example: Any) -> list[Any]:
    """Return what is padded by itself: not the numbers of a sequence."""
    if isinstance(example, Mapping):
        parts = list(example.values())
    elif dataclasses.is_dataclass(example) and not isinstance(example, type):
        parts = [getattr(example, field.name) for field in dataclasses.fields(example)]
    else:
        parts = list(example) if isinstance(example, list | tuple) else []
    return [] if all(isinstance(part, int | float) for part in parts) else parts[:_MOST_PARTS]


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
    if dataclasses.is_dataclass(example) and not isinstance(example, type):
        return sum(
            count_elements(getattr(example, field.name)) for field in dataclasses.fields(example)
        )
    if isinstance(example, Sequence):
        return sum(count_elements(part) for part in example)
    return 1
