"""Batches of exactly the size that is asked for now, cut from chunks that were loaded before.

Workers load ahead, so whatever they load was decided earlier. Here they load chunks of a fixed
size, and the consumer joins and cuts them: the size is decided when a batch is taken.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, final

from rightbatch.batches.cutting import Collated, Piece, joined
from rightbatch.batches.drawing import Order, begun, check_seed, device_of
from rightbatch.batches.resuming import (
    check_same,
    check_version,
    load_schedule,
    refuse_two_masters,
    warn_of_silence,
)
from rightbatch.batches.schedules import BatchSizeSchedule
from rightbatch.batches.sizes import check_divides, check_whole

_STATE_VERSION = 2
_END = object()


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
        world_size: Number of devices; each gets an equal share of a batch. Default: of the
            process group that is initialised, if any.
        drop_last: Leave out the last batch of a pass where it is smaller.
        seed: Of what a loader draws for its workers when a pass begins; the global random state
            stays as it is, since a resumed run begins one pass more. Give each device its own.

    Warns:
        UserWarning: After a pass in which a schedule that follows the noise was handed none.

    Raises:
        ValueError: If the size cannot be shared out over the devices.

    Example:
        >>> import torch
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
        world_size: int | None = None,
        drop_last: bool = False,
        seed: int = 0,
    ) -> None:
        _, self.world_size = device_of(None if world_size is None else 0, world_size)
        self._chunks, self._drop_last = chunks, drop_last
        self._order = Order(0, shuffle=False, seed=check_seed(seed))
        self._schedule, self._batch_size = None, 0
        if isinstance(batch_size, BatchSizeSchedule):
            self._schedule = batch_size.within(multiple_of=self.world_size)
        else:
            self.set_batch_size(batch_size)
        self._pass = 0
        self._position = 0  # examples of this device that this pass has delivered
        self._begun = False
        self.examples_seen = 0  # delivered, over all devices and passes

    def set_batch_size(self, batch_size: int) -> None:
        """Change the size, from the next batch on.

        Raises:
            ValueError: If it cannot be shared out, or a schedule says the size.
        """
        refuse_two_masters(self._schedule)
        self._batch_size = check_divides(batch_size, self.world_size, of="devices")

    @property
    def batch_size(self) -> int:
        """Examples of the next batch, over all devices."""
        if self._schedule is None:
            return self._batch_size
        return self._schedule.size_at(self.examples_seen).batch_size

    def __iter__(self) -> Iterator[Any]:
        if self._begun:  # the last pass was left early
            self._begin_at(self._pass + 1, 0)
        self._begun, number, seen_before = True, self._pass, self.examples_seen
        chunks = begun(self._chunks, seed=self._order.seed_of(number))
        batches = regroup(
            chunks, lambda: self.batch_size // self.world_size, skipped=self._position
        )
        for batch, count in batches:
            if self._drop_last and count * self.world_size < self.batch_size:
                break
            self._position += count
            self.examples_seen += count * self.world_size
            yield batch
        if self._pass == number:
            self._begin_at(number + 1, 0)
        if self.examples_seen > seen_before:
            warn_of_silence(self._schedule)

    def _begin_at(self, number: int, position: int) -> None:
        self._pass, self._position, self._begun = number, position, False

    def state_dict(self) -> dict[str, Any]:
        """Return how far the consumer is, as plain JSON types.

        A pass that was iterated to its end is over: a run that is resumed then begins the next.
        """
        return {
            "version": _STATE_VERSION,
            "world_size": self.world_size,
            "pass": self._pass,
            "position": self._position,
            "examples_seen": self.examples_seen,
            "batch_size": self._batch_size,
            "schedule": None if self._schedule is None else self._schedule.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on there, in the next pass over the chunks.

        Raises:
            ValueError: If the state is of another version, schedule or number of devices: each
                has its own part of the stream.
        """
        check_version(state, _STATE_VERSION)
        check_same(
            "world_size", state["world_size"], self.world_size, why="Each has its own stream."
        )
        load_schedule(self._schedule, state["schedule"])
        if self._schedule is None:
            self.set_batch_size(state["batch_size"])
        self.examples_seen = state["examples_seen"]
        self._begin_at(state["pass"], state["position"])


def micro_batches(batch: Any, micro_batch_size: int) -> Iterator[tuple[Any, int]]:
    """Cut a batch into parts that fit on the device.

    Weigh each part's mean loss by its share of the whole batch: the last may be smaller.

    Args:
        batch: Collated, of any structure of tensors, arrays and lists with one row per example;
            `rightbatch.batches.cutting` says how each is read.
        micro_batch_size: Examples per part, at most.

    Yields:
        A part and the number of its examples.

    Raises:
        ValueError: If the size is below 1, or the batch can be read in no way or in two.

    Example:
        >>> import torch
        >>> for part, count in micro_batches({"x": torch.arange(5)}, 2):
        ...     print(part["x"].tolist(), count / 5)
        [0, 1] 0.4
        [2, 3] 0.4
        [4] 0.2
    """
    micro_batch_size = check_whole("micro_batch_size", micro_batch_size)
    collated = Collated(batch)
    for start in range(0, collated.count, micro_batch_size):
        stop = min(start + micro_batch_size, collated.count)
        yield collated.cut(start, stop), stop - start


def regroup(
    chunks: Iterable[Any], wanted: Callable[[], int], *, skipped: int = 0
) -> Iterator[tuple[Any, int]]:
    """Cut and join chunks to batches.

    Args:
        chunks: Collated batches of any size.
        wanted: Says the size of the next batch; asked when that batch is asked for.
        skipped: Examples to leave out at the front.

    Yields:
        A batch and the number of its examples; only the last can be smaller than wanted.
    """
    held: deque[Piece] = deque()
    left = 0  # examples held
    source = iter(chunks)
    while True:
        size = wanted()
        while left < size:
            chunk = next(source, _END)
            if chunk is _END:
                break
            collated = Collated(chunk)
            start = min(skipped, collated.count)
            skipped -= start
            held.append(Piece(collated, start, collated.count))
            left += collated.count - start
        pieces = _take(held, min(size, left))
        if not pieces:
            return
        left -= min(size, left)
        yield joined(pieces), sum(piece.stop - piece.start for piece in pieces)


def _take(held: deque[Piece], size: int) -> list[Piece]:
    """Take so many examples off the front."""
    pieces: list[Piece] = []
    while size:
        of, start, stop = held.popleft()
        if stop - start > size:
            held.appendleft(Piece(of, start + size, stop))
            stop = start + size
        if stop > start:
            pieces.append(Piece(of, start, stop))
        size -= stop - start
    return pieces
