"""The global order of an epoch, what each device draws of it, and a pass: how far it is."""

import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from rightbatch._comm import default_comm
from rightbatch.batches.sizes import check_whole, whole

_SEEDS = 2**31 - 1  # prime, so that seed and epoch together make seeds of their own
_ALL_SEEDS = 2**64  # that a generator takes
_BITS = 2**31
_EPOCHS = 2**20  # more than a run has, so that no device gets the seed of another's later epoch


def examples_of(dataset: Sized | int) -> int:
    """Count the examples of a data set, or take their number.

    Raises:
        ValueError: If it has no length.
    """
    number = len(dataset) if isinstance(dataset, Sized) else whole(dataset)
    if number is None:
        raise ValueError(
            f"`dataset` must have a length, got {type(dataset).__name__}. A stream has no numbers "
            "to draw: load it in chunks, and take batches from rightbatch.batches.Regrouped."
        )
    return check_whole("dataset", number)


def device_of(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return this device's number, and how many there are.

    Args:
        rank: Default: in the process group that is initialised, if any.
        world_size: Default: of that group.

    Raises:
        ValueError: If the rank is none of that many devices.

    Example:
        >>> device_of(1, 2), device_of(None, None)
        ((1, 2), (0, 1))
    """
    comm = default_comm()
    devices = comm.world_size if world_size is None else check_whole("world_size", world_size)
    exact = comm.rank if rank is None else whole(rank)
    if exact is None or not 0 <= exact < devices:
        raise ValueError(
            f"`rank` must be at least 0 and below world_size={devices}, got "
            f"rank={exact if rank is None else rank!r}. Devices are counted from 0: pass both, or "
            "neither for those of the process group."
        )
    return exact, devices


def check_seed(seed: int) -> int:
    """Return a seed as an ``int``.

    Raises:
        ValueError: If it is no whole number.
    """
    exact = whole(seed)
    if exact is None:
        raise ValueError(
            f"`seed` must be a whole number, got seed={seed!r}. "
            "All devices must draw the same order, and a resumed run too: choose one."
        )
    return exact


@final
@dataclass(frozen=True, slots=True)
class Order:
    """Every example once per epoch, in an order that all devices share."""

    num_examples: int
    shuffle: bool
    seed: int

    def seed_of(self, epoch: int, rank: int = 0) -> int:
        """Return a seed that no other epoch and device has."""
        seed = self.seed
        if not -_BITS <= seed < _BITS:  # the CPU's generator looks at 32 bits
            size = seed.bit_length() // 8 + 1
            seed = zlib.crc32(seed.to_bytes(size, "little", signed=True))
        return (seed * _SEEDS + rank * _EPOCHS + epoch) % _ALL_SEEDS

    def of(self, epoch: int) -> Tensor:
        """Return the numbers of the examples, shape [num_examples]."""
        if not self.shuffle:
            return torch.arange(self.num_examples, device="cpu")
        generator = torch.Generator().manual_seed(self.seed_of(epoch))
        return torch.randperm(self.num_examples, generator=generator, device="cpu")


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


def check_in_order(loader: Iterable[Any]) -> None:
    """Refuse a loader whose workers overtake each other.

    Raises:
        ValueError: If it does not deliver in order.
    """
    if getattr(loader, "num_workers", 0) and not getattr(loader, "in_order", True):
        raise ValueError(
            "`loader` must deliver in order, got in_order=False. Which of the batches ahead "
            "were delivered would be unknown: leave that option out."
        )


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


@final
class Pass(Iterator[list[int]]):
    """One pass; it begins with the first draw, since loaders make iterators that they drop.

    Its state is what was *drawn*: a loader that keeps states itself saves one after each draw,
    and picks the one of the batch it delivers.

    Args:
        begin: Begins it, and returns its place.
        draw: Returns the next batch from a place on.
        state_of: Returns the state at a place, or before the pass has one.
        load: Loads a state, so that the next pass begins there.
    """

    def __init__(
        self,
        begin: Callable[[], Place],
        draw: Callable[[Place], list[int]],
        state_of: Callable[[Place | None], dict[str, Any]],
        load: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self._begin, self._draw, self._state_of, self._load = begin, draw, state_of, load
        self._place: Place | None = None

    def __next__(self) -> list[int]:
        if self._place is None:
            self._place = self._begin()
        return self._draw(self._place)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of what was drawn."""
        return self._state_of(self._place)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Begin at a state, whatever the sampler's own says."""
        self._load(state)
        self._place = self._begin()
