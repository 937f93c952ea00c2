"""The global order of an epoch, what each device draws of it, and how far a pass is."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

_SEEDS = 2**31 - 1  # prime, so that seed and epoch together make seeds of their own
_EPOCHS = 2**20  # more than a run has, so that no device gets the seed of another's later epoch


def examples_of(dataset: Sized | int) -> int:
    """Count the examples of a data set, or take their number.

    Raises:
        ValueError: If it has no length.
    """
    if isinstance(dataset, int):
        return dataset
    if not isinstance(dataset, Sized):
        raise ValueError(
            f"`dataset` must have a length, got {type(dataset).__name__}. A stream has no numbers "
            "to draw: load it in chunks, and take batches from rightbatch.batches.Regrouped."
        )
    return len(dataset)


@final
@dataclass(frozen=True, slots=True)
class Order:
    """Every example once per epoch, in an order that all devices share."""

    num_examples: int
    shuffle: bool
    seed: int

    def seed_of(self, epoch: int, rank: int = 0) -> int:
        """Return a seed that no other epoch and device has."""
        return self.seed * _SEEDS + rank * _EPOCHS + epoch

    def of(self, epoch: int) -> Tensor:
        """Return the numbers of the examples, shape [num_examples]."""
        if not self.shuffle:
            return torch.arange(self.num_examples)
        generator = torch.Generator().manual_seed(self.seed_of(epoch))
        return torch.randperm(self.num_examples, generator=generator)


def share(order: Tensor, begin: int, size: int, *, rank: int, world_size: int) -> list[int]:
    """Return a device's share of the next examples of an order.

    Args:
        order: Of the epoch.
        begin: Examples before the batch.
        size: Of the batch, over all devices.
        rank: Of the device.
        world_size: Number of devices, at most the examples of the order. Where it does not divide
            the size, the batch is padded with the first of them.

    Example:
        >>> order = torch.tensor([7, 8, 9, 5, 6])
        >>> [share(order, 2, 3, rank=rank, world_size=2) for rank in (0, 1)]
        [[9, 6], [5, 7]]
    """
    whole = order[begin : begin + size]
    padding = -size % world_size
    if padding:
        whole = torch.cat([whole, order[:padding]])
    return whole[rank::world_size].tolist()


def begun(loader: Iterable[Any], *, seed: int) -> Iterator[Any]:
    """Begin a pass over a loader, and leave the global random state as it is.

    Args:
        loader: It draws a seed for its workers when a pass begins, from its own generator or else
            from the global one.
        seed: What the global one starts from meanwhile.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return iter(loader)


@final
@dataclass(slots=True)
class Place:
    """How far a pass has drawn."""

    epoch: int
    position: int  # examples of the epoch, over all devices
    examples_seen: int  # since training began
    planned: deque[int]  # sizes to draw first
    drawn: int = 0  # batches
    order: Tensor | None = None  # of the epoch, once it is needed
    is_over: bool = False


@final
class Indices(list[int]):
    """Numbers of examples that tell when they leave for another process.

    Args:
        numbers: Of the examples of a batch.
        on_leaving: Called then; the other process gets a plain list.
    """

    def __init__(self, numbers: list[int], on_leaving: Callable[[], None]) -> None:
        super().__init__(numbers)
        self._on_leaving = on_leaving

    def __reduce__(self) -> tuple[type[list[int]], tuple[list[int]]]:
        self._on_leaving()
        return list, (list(self),)
