r"""Batches of numbers of examples, of a size that may change, for a `DataLoader`.

Everything is counted in examples of one global order, which all devices share: a batch of ``n``
is the next ``n`` of it, and device ``r`` of ``w`` takes every ``w``-th from the ``r``-th on. So
neither a change of size nor another number of devices can lose or repeat an example.

A loader with workers draws batches ahead of what it delivers. Both ends are counted:

    order     ....|============ epoch =================================|....
                      delivered ^        drawn ^
                                 \__ ahead __/   num_workers x prefetch_factor batches

A checkpoint holds the delivered end and the sizes of the batches ahead.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any, final

from torch.utils.data import Sampler

from rightbatch.batches.drawing import (
    Indices,
    Order,
    Pass,
    Place,
    begun,
    check_in_order,
    check_seed,
    device_of,
    examples_of,
    share,
)
from rightbatch.batches.regrouping import regroup
from rightbatch.batches.resuming import (
    check_same,
    check_version,
    load_schedule,
    refuse_two_masters,
    warn_of_silence,
)
from rightbatch.batches.schedules import BatchSizeSchedule
from rightbatch.batches.sizes import check_divides, check_fits

_STATE_VERSION = 1


@final
class BatchSizeSampler(Sampler[list[int]]):
    """Draw every example once per epoch, in batches whose size may change at any time.

    Hand it to a loader as ``DataLoader(dataset, batch_sampler=sampler, num_workers=...)``. A
    schedule's sizes arrive exactly where the schedule says. A size set by hand arrives late with
    workers, since ``num_workers * prefetch_factor`` batches are already drawn (`lag`); with
    ``chunk_size`` it arrives at once.

    The trap: how much a loader with workers has delivered only its consumer knows. Iterate
    ``sampler.follow(loader)`` instead of ``loader`` to have it counted, and save ``state_dict()``
    after a step. A `StatefulDataLoader` of torchdata counts by itself.

    Args:
        dataset: A map-style data set, or its number of examples.
        batch_size: Examples per optimizer step over all devices, or a schedule. Where micro-
            batches are accumulated, those of one of them.
        shuffle: A new order each epoch, or ascending.
        seed: Of the orders; the same on all devices.
        rank: Of this device; default: in the process group that is initialised, if any.
        world_size: Number of devices; default: of that group.
        drop_last: Leave out an epoch's last batch where it is smaller than asked. Otherwise it
            is padded with the epoch's first examples to a multiple of ``world_size`` (`padded`).
        chunk_size: Have the loader load chunks of so many examples, over all devices, and
            `follow` make batches of them: no lag, for one more copy of each batch.

    Warns:
        UserWarning: After a pass in which a schedule that follows the noise was handed none.

    Raises:
        ValueError: If a number is out of range, or a size exceeds the data set or cannot be
            shared out; the nearest valid sizes are named.

    Example:
        >>> sampler = BatchSizeSampler(10, BatchSizeSchedule.table({0: 2, 4: 3}), shuffle=False)
        >>> list(sampler)
        [[0, 1], [2, 3], [4, 5, 6], [7, 8, 9]]
    """

    def __init__(
        self,
        dataset: Sized | int,
        batch_size: int | BatchSizeSchedule,
        *,
        shuffle: bool = True,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        drop_last: bool = False,
        chunk_size: int | None = None,
    ) -> None:
        self._num_examples = examples_of(dataset)
        self._rank, self.world_size = device_of(rank, world_size)
        seed = check_seed(seed)
        self._order, self._drop_last = Order(self._num_examples, shuffle, seed), drop_last
        self._described = [self._num_examples, shuffle, seed, drop_last]
        self._schedule, self._batch_size = None, 0
        if isinstance(batch_size, BatchSizeSchedule):
            self._schedule = batch_size.within(
                num_examples=self._num_examples, multiple_of=self.world_size
            )
        else:
            self._batch_size = self._checked(batch_size)
        self._chunk_size = None if chunk_size is None else self._checked(chunk_size)
        self.epoch = 0
        self.drawn = 0  # batches, since this object was made
        self._seen = self._delivered = 0
        self._start_at(position=0, ahead=())

    def _checked(self, batch_size: int) -> int:
        check_fits(batch_size, num_examples=self._num_examples)
        return check_divides(batch_size, self.world_size, of="devices")

    def _start_at(self, *, position: int, ahead: Iterable[int]) -> None:
        self._position = position  # examples of this epoch that were delivered
        self._planned = tuple(ahead)  # sizes that an earlier life of this run had drawn already
        self._ahead: deque[int] = deque()  # sizes of batches drawn and not delivered
        self._place: Place | None = None  # of the pass under way
        self._counting = self._follows_next = self._ended = False
        self._crosses_processes = self._loader_keeps_state = False

    # What is asked for.

    @property
    def batch_size(self) -> int:
        """Examples, over all devices, of the next batch that is not drawn yet."""
        if self._place is None or self._chunk_size is not None:
            return self._size_at(self._seen)
        return self._size_at(self._place.examples_seen)

    def set_batch_size(self, batch_size: int) -> int:
        """Change the size of all batches that are not drawn yet.

        Args:
            batch_size: Examples over all devices.

        Returns:
            The lag: how many batches of earlier sizes are still to come.

        Raises:
            ValueError: If it cannot be shared out over the devices (the nearest valid sizes are
                named), exceeds the data set, or a schedule says the size.
        """
        refuse_two_masters(self._schedule)
        self._batch_size = self._checked(batch_size)
        return self.lag

    @property
    def lag(self) -> int:
        """Batches drawn and not delivered, as far as `follow` counts them."""
        return len(self._ahead)

    def set_epoch(self, epoch: int) -> None:
        """Begin another epoch with the next pass.

        Passes count epochs by themselves, so this is needed only to jump. The epoch that a
        loaded state is in the middle of is not begun anew.
        """
        if epoch != self.epoch or self._place is not None:
            self.epoch = epoch
            self._start_at(position=0, ahead=())

    def _size_at(self, examples_seen: int) -> int:
        schedule = self._schedule
        return schedule.size_at(examples_seen).batch_size if schedule else self._batch_size

    # What has happened.

    @property
    def examples_seen(self) -> int:
        """Examples delivered since training began, over all devices and epochs.

        Raises:
            RuntimeError: If workers load ahead and nobody counts what is delivered.
        """
        self._check_counted()
        return self._seen

    @property
    def delivered(self) -> int:
        """Batches delivered since training began.

        Raises:
            RuntimeError: If workers load ahead and nobody counts what is delivered.
        """
        self._check_counted()
        return self._delivered

    @property
    def padded(self) -> int:
        """Examples that an epoch repeats so that all devices have equally many."""
        return 0 if self._drop_last else -self._num_examples % self.world_size

    def _check_counted(self) -> None:
        loads_ahead = self._crosses_processes or self._chunk_size is not None
        is_counted = self._counting or self._loader_keeps_state or self._place is None
        if loads_ahead and not is_counted:
            raise RuntimeError(
                "`follow` must be iterated to know what was delivered, got a pass over the loader. "
                "Its workers have drawn more than they delivered, and a resumed run would lose the "
                "difference: write `for batch in sampler.follow(loader)`."
            )

    # The pass.

    def __iter__(self) -> Pass:
        return Pass(self._begin, self._draw, self._drawn_state, self.load_state_dict)

    def __len__(self) -> int:
        """Count what the pass under way, or else the next, draws at the present size.

        Those are batches, and with ``chunk_size`` chunks, which is what the loader yields then.
        """
        place = self._place
        if place is None or place.is_over:
            return sum(1 for _ in self._sizes(self._upcoming()))
        rest = Place(place.epoch, place.position, place.examples_seen, deque(place.planned))
        return place.drawn + sum(1 for _ in self._sizes(rest))

    def follow(self, loader: Iterable[Any]) -> Iterator[Any]:
        """Iterate a loader that draws from this sampler, and count what it delivers.

        The global random state stays as it is, since a resumed run begins one pass more: the
        workers' seed follows from the sampler's and the epoch.

        Args:
            loader: A `DataLoader` with this as its ``batch_sampler``.

        Yields:
            The loader's batches; with ``chunk_size``, batches of exactly `batch_size`.

        Raises:
            ValueError: If the loader delivers out of order.
            RuntimeError: If it draws from another sampler.
        """
        check_in_order(loader)
        self._follows_next = True
        batches = begun(loader, seed=self._order.seed_of(self._upcoming().epoch, self._rank))
        if self._chunk_size is not None:
            yield from self._regrouped(batches)
        else:
            yield from self._counted(batches)
        self._end()

    def _counted(self, batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            if not self._ahead:
                raise RuntimeError(
                    "`loader` must draw from this sampler, got a batch that it never drew. "
                    "Pass it as `batch_sampler`, and follow one pass at a time."
                )
            self._deliver(self._ahead.popleft())
            yield batch

    def _regrouped(self, batches: Iterator[Any]) -> Iterator[Any]:
        for batch, count in regroup(batches, lambda: self.batch_size // self.world_size):
            left = self._num_examples - self._position
            if self._drop_last and left < self.batch_size:
                return
            self._deliver(min(count * self.world_size, left))
            yield batch

    def _end(self) -> None:
        """Note that the consumer asked beyond the last batch: the pass is over for it too."""
        self._ended = True
        if self._place is not None and self._place.drawn:
            warn_of_silence(self._schedule)

    def _deliver(self, size: int) -> None:
        self._position += size
        self._seen += size
        self._delivered += 1

    def _upcoming(self) -> Place:
        """Where the next pass begins: where a state was loaded, or with the next epoch."""
        if self._place is None:
            return Place(self.epoch, self._position, self._seen, deque(self._planned))
        return Place(self.epoch + 1, 0, self._seen, deque())

    def _begin(self) -> Place:
        place = self._upcoming()
        follows = self._follows_next
        self._start_at(position=place.position, ahead=())
        self.epoch, self._place, self._counting = place.epoch, place, follows
        return place

    def _sizes(self, place: Place) -> Iterator[int]:
        """Sizes from a place to the end of its epoch; the place moves along."""
        while place.position < self._num_examples:
            left = self._num_examples - place.position
            wanted = self._chunk_size or self._size_at(place.examples_seen)
            if not place.planned and wanted > left and self._drop_last and not self._chunk_size:
                return
            size = min(place.planned.popleft() if place.planned else wanted, left)
            place.position += size
            place.examples_seen += size
            place.drawn += 1
            yield size

    def _draw(self, place: Place) -> list[int]:
        if place is not self._place:
            raise RuntimeError(
                "`BatchSizeSampler` must serve one pass at a time, got a second one that began "
                "before this one ended. Make a sampler for each loader."
            )
        begin = place.position
        size = next(self._sizes(place), None)
        if size is None:
            place.is_over, place.order = True, None
            if not (self._counting or self._crosses_processes or self._loader_keeps_state):
                self._end()
            raise StopIteration
        self.drawn += 1
        if self._counting and self._chunk_size is None:
            self._ahead.append(size)
        elif not self._counting:
            self._deliver(size)
        if place.order is None:
            place.order = self._order.of(place.epoch)
        numbers = share(place.order, begin, size, rank=self._rank, world_size=self.world_size)
        return Indices(numbers, self._note_leaving)

    def _note_leaving(self) -> None:
        self._crosses_processes = True

    # Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs, as plain JSON types: what was delivered counts.

        A pass that was iterated to its end is over: a run resumed then begins the next epoch. Of
        one left at its last batch the rest is a pass of no batch.

        Raises:
            RuntimeError: If workers load ahead and nobody counts what is delivered.
        """
        self._check_counted()
        if self._ended:
            return self._state(Place(self.epoch + 1, 0, self._seen, deque()), self._delivered)
        planned = self._planned if self._place is None else self._place.planned
        ahead = deque([*self._ahead, *planned])
        return self._state(Place(self.epoch, self._position, self._seen, ahead), self._delivered)

    def _state(self, place: Place, delivered: int) -> dict[str, Any]:
        return {
            "version": _STATE_VERSION,
            "order": list(self._described),
            "epoch": place.epoch,
            "position": place.position,
            "ahead": list(place.planned),
            "examples_seen": place.examples_seen,
            "delivered": delivered,
            "batch_size": self._batch_size,
            "schedule": None if self._schedule is None else self._schedule.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another sampler of the same data and schedule stood.

        The number of devices and of workers may differ: places are counted in examples of the
        global order. The next pass is the rest of the epoch that was under way.

        Raises:
            ValueError: If the state is of another version, data set, order or schedule, or its
                sizes cannot be shared out over this number of devices.
        """
        check_version(state, _STATE_VERSION)
        check_same(
            "examples, shuffle, seed and drop_last",
            list(state["order"]),
            self._described,
            why="Another order would repeat and lose examples.",
        )
        load_schedule(self._schedule, state["schedule"])
        ahead = list(state["ahead"])
        ends_epoch = state["position"] + sum(ahead) == self._num_examples  # with what is left
        by_hand = [] if self._schedule else [state["batch_size"]]
        for size in [*(ahead[:-1] if ends_epoch else ahead), *by_hand]:
            check_divides(size, self.world_size, of="devices")
        self.epoch, self._batch_size = state["epoch"], state["batch_size"]
        self._seen, self._delivered = state["examples_seen"], state["delivered"]
        self._start_at(position=state["position"], ahead=state["ahead"])

    def _drawn_state(self, place: Place | None) -> dict[str, Any]:
        """Return the state of a loader that keeps states: of what a pass has *drawn*."""
        if self._chunk_size is not None:
            raise RuntimeError(
                "`chunk_size` must be None where the loader keeps the state, got "
                f"chunk_size={self._chunk_size}. What `follow` holds back is unknown to the "
                "loader: use a plain DataLoader, and save the sampler's own state."
            )
        self._loader_keeps_state = True
        return self._state(place or self._upcoming(), self._delivered + self.lag)
