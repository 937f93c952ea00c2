"""Batches of exactly the size that is asked for now, cut from chunks that were loaded before.

Workers load ahead, so whatever they load was decided earlier. Here they load chunks of a fixed
size, and the consumer joins and cuts them: the size is decided when a batch is taken.
"""

import copy
import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from rightbatch.batches.schedules import BatchSizeSchedule
from rightbatch.batches.sizes import check_divides, check_whole
from rightbatch.task.data import examples_in

_STATE_VERSION = 1


@final
class Regrouped:
    """Batches of a chosen size from a stream that is loaded in chunks of any size.

    This is what `BatchSizeSampler` is for iterable data sets, whose examples have no numbers: let
    the loader make chunks (its ``batch_size``), and take batches from here. There is no lag: a
    new size holds from the next batch on.

    Chunks are joined along the first dimension, so tensors must agree in all others: pad to one
    length in ``collate_fn``. The trap: a resumed pass reads and drops what it has seen, so the
    stream must repeat itself.

    Args:
        chunks: A `DataLoader` over the data set, or any iterable of collated batches. With
            several devices, each has its own part of the stream.
        batch_size: Examples per optimizer step over all devices, or a schedule.
        world_size: Number of devices; each gets an equal share of a batch.
        drop_last: Leave out the last batch of a pass where it is smaller.

    Raises:
        ValueError: If the size cannot be shared out over the devices.

    Example:
        >>> chunks = [torch.arange(0, 4), torch.arange(4, 8), torch.arange(8, 10)]
        >>> batches = Regrouped(chunks, 3)
        >>> for batch in batches:
        ...     print(batch.tolist())
        ...     batches.set_batch_size(5)
        [0, 1, 2]
        [3, 4, 5, 6, 7]
        [8, 9]
    """

    def __init__(
        self,
        chunks: Iterable[Any],
        batch_size: int | BatchSizeSchedule,
        *,
        world_size: int = 1,
        drop_last: bool = False,
    ) -> None:
        check_whole("world_size", world_size)
        self._chunks, self._world_size, self._drop_last = chunks, world_size, drop_last
        self._schedule, self._batch_size = None, 0
        if isinstance(batch_size, BatchSizeSchedule):
            self._schedule = batch_size.within(multiple_of=world_size)
        else:
            self.set_batch_size(batch_size)
        self._position = 0  # examples of this device that this pass has delivered
        self._begun = False
        self.examples_seen = 0  # delivered, over all devices and passes

    def set_batch_size(self, batch_size: int) -> None:
        """Change the size, from the next batch on.

        Raises:
            ValueError: If it cannot be shared out, or a schedule says the size.
        """
        refuse_two_masters(self._schedule)
        check_divides(batch_size, self._world_size, of="devices")
        self._batch_size = batch_size

    @property
    def batch_size(self) -> int:
        """Examples of the next batch, over all devices."""
        if self._schedule is None:
            return self._batch_size
        return self._schedule.size_at(self.examples_seen).batch_size

    def __iter__(self) -> Iterator[Any]:
        if self._begun:
            self._position = 0
        self._begun = True
        rest = _without_first(self._chunks, self._position)
        for batch, count in regroup(rest, lambda: self.batch_size // self._world_size):
            if self._drop_last and count * self._world_size < self.batch_size:
                return
            self._position += count
            self.examples_seen += count * self._world_size
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return how far the consumer is, as plain JSON types."""
        return {
            "version": _STATE_VERSION,
            "position": self._position,
            "examples_seen": self.examples_seen,
            "batch_size": self._batch_size,
            "schedule": None if self._schedule is None else self._schedule.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on there, in the next pass over the chunks.

        Raises:
            ValueError: If the state is of another version or of another schedule.
        """
        check_version(state, _STATE_VERSION)
        load_schedule(self._schedule, state["schedule"])
        if self._schedule is None:
            self.set_batch_size(state["batch_size"])
        self._position, self.examples_seen = state["position"], state["examples_seen"]
        self._begun = False


def check_version(state: Mapping[str, Any], version: int) -> None:
    """Refuse the state of another release.

    Raises:
        ValueError: If the versions differ.
    """
    if state.get("version") != version:
        raise ValueError(
            f"`state` must be of version {version}, got {state.get('version')!r}. "
            "It was saved by another release: begin a new run."
        )


def load_schedule(schedule: BatchSizeSchedule | None, state: Mapping[str, Any] | None) -> None:
    """Restore a schedule's state, where both or neither exist.

    Raises:
        ValueError: If one of them is missing, or they differ.
    """
    if schedule is not None and state is not None:
        schedule.load_state_dict(state)
    elif schedule is not None or state is not None:
        there = "no schedule" if state is None else state["schedule"]
        raise ValueError(
            f"`state` must be of the same schedule, got {there!r} for {schedule!r}. "
            "Sizes would jump: build the sampler as the run began."
        )


def refuse_two_masters(schedule: BatchSizeSchedule | None) -> None:
    """Refuse a size by hand where a schedule says it.

    Raises:
        ValueError: If there is a schedule.
    """
    if schedule is not None:
        raise ValueError(
            f"`set_batch_size` must be called without a schedule, got {schedule!r}. "
            "The schedule would undo it at the next batch: pass a number as `batch_size` first."
        )


def micro_batches(batch: Any, micro_batch_size: int) -> Iterator[tuple[Any, int]]:
    """Cut a batch into parts that fit on the device.

    Weigh each part's mean loss by its share of the whole batch: the last may be smaller.

    Args:
        batch: Collated, of any structure that holds a tensor.
        micro_batch_size: Examples per part, at most.

    Yields:
        A part and the number of its examples.

    Raises:
        ValueError: If the size is below 1, or the batch holds no tensor.

    Example:
        >>> for part, count in micro_batches({"x": torch.arange(5)}, 2):
        ...     print(part["x"].tolist(), count / 5)
        [0, 1] 0.4
        [2, 3] 0.4
        [4] 0.2
    """
    check_whole("micro_batch_size", micro_batch_size)
    yield from regroup([batch], lambda: micro_batch_size)


def regroup(chunks: Iterable[Any], wanted: Callable[[], int]) -> Iterator[tuple[Any, int]]:
    """Cut and join chunks to batches.

    Args:
        chunks: Collated batches of any size.
        wanted: Says the size of the next batch; asked when that batch is asked for.

    Yields:
        A batch and the number of its examples; only the last can be smaller than wanted.
    """
    held: deque[tuple[Any, int]] = deque()
    source = iter(chunks)
    while True:
        size = wanted()
        while sum(count for _, count in held) < size:
            chunk = next(source, None)
            if chunk is None:
                break
            held.append((chunk, _count(chunk)))
        parts = _take(held, size)
        if not parts:
            return
        yield _join([part for part, _ in parts]), sum(count for _, count in parts)


def _take(held: deque[tuple[Any, int]], size: int) -> list[tuple[Any, int]]:
    """Take up to so many examples off the front."""
    parts: list[tuple[Any, int]] = []
    while held and size:
        chunk, count = held.popleft()
        if count > size:
            held.appendleft((_cut(chunk, size, count), count - size))
            chunk, count = _cut(chunk, 0, size), size
        if count:
            parts.append((chunk, count))
        size -= count
    return parts


def _without_first(chunks: Iterable[Any], skipped: int) -> Iterator[Any]:
    for chunk in chunks:
        count = _count(chunk) if skipped else 0
        if skipped == 0:
            yield chunk
        elif count > skipped:
            yield _cut(chunk, skipped, count)
        skipped = max(0, skipped - count)


def _count(chunk: Any) -> int:
    count = examples_in(chunk)
    if count is None:
        raise ValueError(
            f"`chunks` must hold a tensor with a dimension of examples, got {type(chunk).__name__}."
            " Their number tells where to cut: let `collate_fn` add one."
        )
    return count


def _cut(chunk: Any, start: int, stop: int) -> Any:
    size = _count(chunk)

    def sliced(parts: Sequence[Any]) -> Any:
        (part,) = parts
        return part[start:stop] if _entries(part) == size else part

    return _rebuild([chunk], sliced)


def _join(chunks: Sequence[Any]) -> Any:
    if len(chunks) == 1:
        return chunks[0]
    sizes = [_count(chunk) for chunk in chunks]

    def joined(parts: Sequence[Any]) -> Any:
        first = parts[0]
        if [_entries(part) for part in parts] == sizes:
            return _concatenated(parts)
        if all(_same(part, first) for part in parts):
            return first
        raise ValueError(
            f"`chunks` must be joined along tensors and lists of one entry per example, got "
            f"{type(first).__name__} that differ. Which one holds for the whole batch is unknown: "
            "let `collate_fn` write one entry per example."
        )

    return _rebuild(chunks, joined)


def _concatenated(parts: Sequence[Any]) -> Any:
    if not isinstance(parts[0], Tensor):
        return type(parts[0])(item for part in parts for item in part)
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1:
        raise ValueError(
            f"`chunks` must agree in all dimensions but the first, got {sorted(shapes)[:5]}. "
            "They are joined into one batch: pad to one length in `collate_fn`."
        )
    return torch.cat(list(parts))


def _entries(part: Any) -> int | None:
    """How many entries a leaf has, if it is one that can be cut."""
    if isinstance(part, Tensor):
        return len(part) if part.dim() else None
    return len(part) if isinstance(part, tuple | list) else None


def _same(part: Any, other: Any) -> bool:
    if isinstance(part, Tensor) and isinstance(other, Tensor):
        return torch.equal(part, other)
    is_plain = isinstance(part, str | bytes | int | float | tuple | list | None)
    return part is other or (is_plain and type(part) is type(other) and part == other)


def _rebuild(parts: Sequence[Any], leaf: Callable[[Sequence[Any]], Any]) -> Any:
    """Make one structure of several alike, leaf by leaf."""
    first = parts[0]
    if isinstance(first, MutableMapping):
        kept = copy.copy(first)
        kept.update({key: _rebuild([part[key] for part in parts], leaf) for key in first})
        return kept
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        names = [field.name for field in dataclasses.fields(first) if field.init]
        made = {name: _rebuild([getattr(part, name) for part in parts], leaf) for name in names}
        return dataclasses.replace(first, **made)
    if isinstance(first, tuple | list) and examples_in(first) is not None:
        columns = (_rebuild(column, leaf) for column in zip(*parts, strict=True))
        return type(first)(*columns) if hasattr(first, "_fields") else type(first)(columns)
    return leaf(parts)
