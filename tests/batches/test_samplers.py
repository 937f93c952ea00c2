"""Laws of the sampler: examples are conserved, resumed is uninterrupted, ranks make one whole.

The stand-in for workers of `loaders.py` is compared with real ones in `test_real_loaders.py`.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rightbatch.batches import BatchSizeSampler, BatchSizeSchedule
from tests.batches.loaders import Ahead, KeepsState

Batches = list[list[int]]


@dataclass(frozen=True)
class Run:
    """A run whose size is changed by hand after some batches: {batches delivered: new size}."""

    num_examples: int
    batch_size: int | dict[float, int]
    moves: dict[int, int]
    world_size: int = 1
    ahead: int = 0
    chunk_size: int | None = None
    drop_last: bool = False
    epochs: int = 3

    def sampler(self, rank: int = 0, **changed: Any) -> BatchSizeSampler:
        size = self.batch_size
        options = {
            "rank": rank,
            "world_size": self.world_size,
            "drop_last": self.drop_last,
            "chunk_size": self.chunk_size,
            "seed": 3,
            **changed,
        }
        scheduled = BatchSizeSchedule.table(size) if isinstance(size, dict) else size
        return BatchSizeSampler(self.num_examples, scheduled, **options)

    def batches(self, sampler: BatchSizeSampler, ahead: int | None = None) -> Iterator[list[int]]:
        """The rest of the run, each batch once its move was made."""
        loader = Ahead(sampler, self.ahead if ahead is None else ahead)
        for _ in range(sampler.epoch, self.epochs):
            for batch in sampler.follow(loader):
                if sampler.delivered in self.moves:
                    sampler.set_batch_size(self.moves[sampler.delivered])
                yield batch.tolist()


@st.composite
def runs(draw: st.DrawFn, **fixed: Any) -> Run:
    world_size = fixed.get("world_size") or draw(st.integers(1, 3))
    num_examples = draw(st.integers(3 * world_size, 60))
    sizes = st.integers(1, num_examples // world_size).map(lambda size: size * world_size)
    scheduled = draw(st.booleans())
    starts = draw(st.sets(st.integers(1, 150), max_size=3))
    settings = {
        "num_examples": num_examples,
        "world_size": world_size,
        "batch_size": (
            {start: draw(sizes) for start in [0, *sorted(starts)]} if scheduled else draw(sizes)
        ),
        "moves": {} if scheduled else draw(st.dictionaries(st.integers(1, 40), sizes, max_size=4)),
        "ahead": draw(st.integers(0, 7)),
        "chunk_size": draw(st.none() | sizes),
        "drop_last": draw(st.booleans()),
    }
    return Run(**{**settings, **fixed})


def saved(sampler: BatchSizeSampler) -> Any:
    return json.loads(json.dumps(sampler.state_dict()))


# Conservation.


@given(runs(drop_last=False))
def test_every_example_once_an_epoch(run: Run) -> None:
    samplers = [run.sampler(rank) for rank in range(run.world_size)]
    ranks = [list(run.batches(sampler)) for sampler in samplers]
    assert len({len(batches) for batches in ranks}) == 1  # as many batches on every rank
    assert {sampler.examples_seen for sampler in samplers} == {run.epochs * run.num_examples}
    seen = Counter(number for batches in ranks for batch in batches for number in batch)
    repeated = run.sampler().padded * run.epochs
    assert seen.total() == run.epochs * run.num_examples + repeated
    assert set(seen) == set(range(run.num_examples))
    assert min(seen.values()) >= run.epochs


@given(runs(drop_last=False, world_size=1))
def test_alone_nothing_is_repeated(run: Run) -> None:
    numbers = [number for batch in run.batches(run.sampler()) for number in batch]
    for epoch in range(run.epochs):
        begin = epoch * run.num_examples
        this = numbers[begin : begin + run.num_examples]
        assert sorted(this) == list(range(run.num_examples))


@given(runs(drop_last=True))
def test_dropping_takes_whole_batches_only(run: Run) -> None:
    ranks = [list(run.batches(run.sampler(rank))) for rank in range(run.world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    possible = {run.batch_size} if isinstance(run.batch_size, int) else set(run.batch_size.values())
    for parts in zip(*ranks, strict=True):
        assert len({len(part) for part in parts}) == 1
        assert sum(map(len, parts)) in possible | set(run.moves.values())
    seen = Counter(number for batches in ranks for batch in batches for number in batch)
    assert all(count <= run.epochs for count in seen.values())


@pytest.mark.parametrize("chunk", [None, 5, 6, 24])
@pytest.mark.parametrize("num_examples", [24, 25, 29])
def test_dropping_takes_every_whole_batch(num_examples: int, chunk: int | None) -> None:
    sampler = BatchSizeSampler(num_examples, 6, drop_last=True, chunk_size=chunk)
    for _ in range(2):
        batches = sampler.follow(Ahead(sampler, 2))
        assert [len(batch) for batch in batches] == [6, 6, 6, 6]


@given(runs())
def test_ranks_make_the_batches_of_one_device(run: Run) -> None:
    ranks = [list(run.batches(run.sampler(rank))) for rank in range(run.world_size)]
    one = run.sampler(world_size=1)
    for parts, whole in zip(zip(*ranks, strict=True), run.batches(one), strict=True):
        joined = [number for group in zip(*parts, strict=True) for number in group]
        assert joined[: len(whole)] == whole
        assert len(joined) - len(whole) < run.world_size


@given(runs(), st.integers(0, 9))
def test_the_order_does_not_depend_on_workers(run: Run, other: int) -> None:
    def numbers(ahead: int) -> list[int]:
        batches = run.batches(run.sampler(drop_last=False), ahead)
        return [number for batch in batches for number in batch]

    assert numbers(run.ahead) == numbers(other)


@given(runs(), st.integers(0, 9))
def test_scheduled_batches_do_not_depend_on_workers(run: Run, other: int) -> None:
    if not run.moves or run.chunk_size:
        assert list(run.batches(run.sampler())) == list(run.batches(run.sampler(), other))


# Resuming.


@given(runs(), st.integers(0, 60))
def test_resumed_is_uninterrupted(run: Run, killed_after: int) -> None:
    for rank in range(run.world_size):
        whole = list(run.batches(run.sampler(rank)))
        first, second = run.sampler(rank), run.sampler(rank)
        seen = list(islice(run.batches(first), min(killed_after, len(whole))))
        second.load_state_dict(saved(first))
        assert saved(second) == saved(first)
        assert seen + list(run.batches(second)) == whole


@given(runs(), st.integers(1, 30), st.integers(1, 30))
def test_killed_twice_is_uninterrupted(run: Run, first_life: int, second_life: int) -> None:
    sampler, seen = run.sampler(), []
    for life in (first_life, second_life):
        seen += islice(run.batches(sampler), life)
        state = saved(sampler)
        sampler = run.sampler()
        sampler.load_state_dict(state)
    assert seen + list(run.batches(sampler)) == list(run.batches(run.sampler()))


def test_sizes_that_were_drawn_keep_their_order_with_fewer_workers() -> None:
    run = Run(200, 4, {1: 5, 2: 6, 3: 7}, ahead=4)
    first, second = run.sampler(), run.sampler()
    list(islice(run.batches(first), 5))
    assert saved(first)["ahead"] == [5, 6, 7, 7]
    second.load_state_dict(saved(first))
    next(run.batches(second, 1))
    assert saved(second)["ahead"] == saved(first)["ahead"][1:]


@given(runs(world_size=2, drop_last=False), st.integers(0, 60), st.integers(0, 7))
def test_a_scheduled_run_goes_on_with_other_devices_and_workers(
    run: Run, killed_after: int, other: int
) -> None:
    if run.moves and not run.chunk_size:
        return
    one = list(run.batches(run.sampler(world_size=1)))
    first = run.sampler(rank=1)
    delivered = sum(1 for _ in islice(run.batches(first), min(killed_after, len(one))))
    second = run.sampler(world_size=1)
    second.load_state_dict(saved(first))
    assert list(run.batches(second, other)) == one[delivered:]


@given(runs(chunk_size=None), st.integers(0, 60))
def test_a_loader_that_keeps_the_state_resumes(run: Run, killed_after: int) -> None:
    run = Run(**{**vars(run), "moves": {}})

    def rest(loader: KeepsState, sampler: BatchSizeSampler) -> Iterator[list[int]]:
        for _ in range(sampler.epoch, run.epochs):
            yield from (batch.tolist() for batch in loader)

    sampler = run.sampler()
    whole = list(rest(KeepsState(sampler, run.ahead), sampler))
    assert whole == list(run.batches(run.sampler()))
    first = run.sampler()
    loader = KeepsState(first, run.ahead)
    cut = max(1, min(killed_after, len(whole)))
    seen = list(islice(rest(loader, first), cut))
    state = json.loads(json.dumps(loader.state_dict()))
    second = run.sampler()
    resumed = KeepsState(second, run.ahead)
    resumed.load_state_dict(state)
    second.epoch = state["iterator"]["epoch"]  # how many passes are left
    assert seen + list(rest(resumed, second)) == whole


def test_a_state_between_epochs_goes_on_with_the_next() -> None:
    run = Run(10, 4, {}, ahead=4)
    first = run.sampler()
    loader = Ahead(first, 4)
    epoch = [batch.tolist() for batch in first.follow(loader)]
    second = run.sampler()
    second.load_state_dict(saved(first))
    second.set_epoch(second.epoch)  # as a loop over epochs does
    assert second.epoch == 1
    assert list(second) == [batch.tolist() for batch in first.follow(loader)]
    assert len(epoch) == 3


def test_the_epoch_under_way_is_not_begun_anew() -> None:
    run = Run(10, 4, {})
    whole = list(run.sampler())
    first = run.sampler()
    next(iter(first))
    second = run.sampler()
    second.load_state_dict(saved(first))
    second.set_epoch(0)
    assert list(second) == whole[1:]


# Sizes and lags.


@given(st.integers(0, 6), st.integers(1, 9), st.integers(1, 9), st.integers(1, 8))
def test_a_new_size_arrives_after_the_lag(ahead: int, old: int, new: int, at: int) -> None:
    sampler = BatchSizeSampler(200, old)
    batches = (len(batch) for batch in sampler.follow(Ahead(sampler, ahead)))
    assert list(islice(batches, at)) == [old] * at
    assert sampler.set_batch_size(new) == sampler.lag == ahead
    assert list(islice(batches, ahead + 3)) == [old] * ahead + [new] * 3


@given(
    st.integers(0, 6), st.integers(1, 9), st.integers(1, 9), st.integers(1, 8), st.integers(1, 20)
)
def test_chunks_have_no_lag(ahead: int, old: int, new: int, at: int, chunk: int) -> None:
    sampler = BatchSizeSampler(200, old, chunk_size=chunk)
    batches = (len(batch) for batch in sampler.follow(Ahead(sampler, ahead)))
    assert list(islice(batches, at)) == [old] * at
    assert sampler.set_batch_size(new) == 0
    assert list(islice(batches, 3)) == [new] * 3


@given(st.integers(0, 6), st.none() | st.integers(1, 10))
def test_a_schedule_arrives_where_it_says(ahead: int, chunk: int | None) -> None:
    schedule = BatchSizeSchedule.table({0: 2, 5: 3, 14: 5})
    sampler = BatchSizeSampler(12, schedule, chunk_size=chunk)
    loader = Ahead(sampler, ahead)
    path = [
        (sampler.examples_seen - len(batch), len(batch))
        for _ in range(3)
        for batch in sampler.follow(loader)
    ]
    # Begun at 0, 2 and 4 with two, from 6 on with three, from 15 on with five; epochs end at 12.
    expected = [(0, 2), (2, 2), (4, 2), (6, 3), (9, 3), (12, 3), (15, 5), (20, 4), (24, 5)]
    assert path == [*expected, (29, 5), (34, 2)]


def test_a_schedule_that_follows_the_noise_moves_the_sampler() -> None:
    schedule = BatchSizeSchedule.noise(4, max_batch_size=8, dwell_examples=8)
    sampler = BatchSizeSampler(20, schedule)
    sizes = []
    for batch in sampler.follow(Ahead(sampler, 0)):
        sizes.append(len(batch))
        schedule.size_at(sampler.examples_seen, Measured())
    assert sizes == [4, 4, 8, 4]


@pytest.mark.parametrize("killed_after", range(1, 14))
@pytest.mark.parametrize("ahead", [0, 3])
def test_a_run_that_follows_the_noise_resumes(killed_after: int, ahead: int) -> None:
    def made() -> tuple[BatchSizeSchedule, BatchSizeSampler]:
        schedule = BatchSizeSchedule.noise(2, max_batch_size=8, dwell_examples=10)
        return schedule, BatchSizeSampler(40, schedule, seed=2)

    def run(schedule: BatchSizeSchedule, sampler: BatchSizeSampler) -> Iterator[list[int]]:
        for _ in range(sampler.epoch, 2):
            for batch in sampler.follow(Ahead(sampler, ahead)):
                schedule.size_at(sampler.examples_seen, Measured())
                yield batch.tolist()

    whole = list(run(*made()))
    assert {len(batch) for batch in whole} >= {2, 4, 8}
    first, second = made(), made()
    seen = list(islice(run(*first), killed_after))
    second[1].load_state_dict(saved(first[1]))
    assert seen + list(run(*second)) == whole


class Measured:
    noise_scale, low, high = 100.0, 100.0, 100.0


@given(runs())
def test_the_length_is_the_number_of_batches(run: Run) -> None:
    sampler = run.sampler()
    if run.chunk_size or run.moves:
        return
    for _ in range(run.epochs):
        promised = len(sampler)
        got = 0
        for _ in sampler.follow(Ahead(sampler, run.ahead)):
            got += 1
            if got < promised - run.ahead:
                assert len(sampler) == promised
        assert got == promised


def test_counting_the_batches_takes_none_of_those_that_were_drawn_before() -> None:
    run = Run(60, 4, {1: 5, 2: 6, 3: 7}, ahead=4)
    first, second = run.sampler(), run.sampler()
    list(islice(run.batches(first), 4))
    second.load_state_dict(saved(first))
    draws = iter(second)
    next(draws)
    promised = [len(second), len(second)]
    rest = [len(numbers) for numbers in draws]
    assert rest[:3] == [5, 6, 7]
    assert promised == [1 + len(rest)] * 2


# Epochs and orders.


def test_every_epoch_has_an_order_of_its_own() -> None:
    sampler = BatchSizeSampler(50, 50)
    orders = [tuple(next(iter(sampler))) for _ in range(4)]
    assert len(set(orders)) == 4
    other = BatchSizeSampler(50, 50, seed=1)
    assert tuple(next(iter(other))) not in orders


class Drawing:
    """Draws a number when a pass begins, as a loader draws the seed of its workers."""

    def __init__(self, sampler: BatchSizeSampler) -> None:
        self.sampler = sampler
        self.drawn: list[int] = []

    def __iter__(self) -> Iterator[list[int]]:
        self.drawn.append(int(torch.randint(2**62, ())))
        return iter(self.sampler)


def test_workers_draw_other_numbers_on_every_device_and_in_every_epoch() -> None:
    def drawn(rank: int) -> list[int]:
        loader = Drawing(BatchSizeSampler(8, 4, rank=rank, world_size=2))
        for _ in range(2):
            list(loader.sampler.follow(loader))
        return loader.drawn

    assert len({*drawn(0), *drawn(1)}) == 4
    assert drawn(0) == drawn(0)


def test_the_order_is_the_same_in_every_run() -> None:
    def orders() -> Batches:
        sampler = BatchSizeSampler(50, 50, seed=5)
        return [*sampler, *sampler]

    assert orders() == orders()


def test_an_epoch_can_be_chosen() -> None:
    sampler = BatchSizeSampler(20, 8)
    epochs = [list(sampler) for _ in range(3)]
    sampler.set_epoch(1)
    assert (list(sampler), sampler.epoch) == (epochs[1], 1)
    sampler.set_epoch(1)  # once more
    assert list(sampler) == epochs[1]
    assert list(sampler) == epochs[2]


def test_a_pass_that_is_broken_off_is_over() -> None:
    sampler, other = BatchSizeSampler(20, 8), BatchSizeSampler(20, 8)
    next(iter(sampler))
    other.set_epoch(1)
    assert list(sampler) == list(other)
    assert sampler.examples_seen == 28


def test_making_an_iterator_begins_nothing() -> None:
    sampler, other = BatchSizeSampler(20, 8), BatchSizeSampler(20, 8)
    for _ in range(3):
        iter(sampler)
    assert list(sampler) == list(other)


def test_unshuffled_is_ascending() -> None:
    sampler = BatchSizeSampler(range(5), 2, shuffle=False)
    assert [list(sampler), list(sampler)] == [[[0, 1], [2, 3], [4]]] * 2


def test_padding_is_the_first_examples() -> None:
    ranks = [BatchSizeSampler(5, 3, shuffle=False, rank=rank, world_size=3) for rank in range(3)]
    assert [list(sampler) for sampler in ranks] == [[[0], [3]], [[1], [4]], [[2], [0]]]
    assert [sampler.padded for sampler in ranks] == [1, 1, 1]
    assert [sampler.examples_seen for sampler in ranks] == [5, 5, 5]


# Misuse.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": 0}, "got dataset=0"),
        ({"dataset": iter([1, 2])}, r"must have a length, got list_iterator.*batches\.Regrouped"),
        ({"batch_size": 0}, "got batch_size=0"),
        ({"batch_size": 101}, "the data set's 100 examples, got batch_size=101"),
        ({"batch_size": 10, "world_size": 4}, "multiple of 4, .* devices, .*take 8 or 12"),
        ({"chunk_size": 10, "world_size": 4}, "multiple of 4, .*batch_size=10"),
        ({"rank": 2, "world_size": 2}, "below world_size=2, got rank=2"),
        ({"rank": -1}, "got rank=-1"),
        ({"world_size": 0}, "got world_size=0"),
        (
            {"batch_size": BatchSizeSchedule.table({0: 8, 9: 200})},
            "the data set's 100 examples, got batch_size=200",
        ),
        (
            {"batch_size": BatchSizeSchedule.table({0: 8, 9: 10}), "world_size": 4},
            "multiple of 4, .*got batch_size=10.*take 8 or 12",
        ),
    ],
)
def test_impossible_samplers_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchSizeSampler(**{"dataset": 100, "batch_size": 8, **options})


@pytest.mark.parametrize(
    ("size", "message"),
    [(9, "multiple of 2, .*take 8 or 10"), (0, "got batch_size=0"), (102, "100 examples")],
)
def test_impossible_sizes_are_refused(size: int, message: str) -> None:
    sampler = BatchSizeSampler(100, 8, world_size=2)
    with pytest.raises(ValueError, match=message):
        sampler.set_batch_size(size)
    assert sampler.batch_size == 8


def test_a_scheduled_size_is_not_set_by_hand() -> None:
    sampler = BatchSizeSampler(100, BatchSizeSchedule.table({0: 8}))
    with pytest.raises(ValueError, match=r"without a schedule, got BatchSizeSchedule\(table 0:8\)"):
        sampler.set_batch_size(16)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (BatchSizeSampler(99, 8), r"\[99, True, 0, False\], got \[100, True, 0, False\]"),
        (BatchSizeSampler(100, 8, seed=1), r"got \[100, True, 0, False\]"),
        (BatchSizeSampler(100, 8, shuffle=False), r"got \[100, True, 0, False\]"),
        (BatchSizeSampler(100, 8, drop_last=True), r"got \[100, True, 0, False\]"),
        (BatchSizeSampler(100, 6, world_size=3), "multiple of 3, .*batch_size=8.*take 6 or 9"),
        (BatchSizeSampler(100, BatchSizeSchedule.table({0: 8})), "of the same schedule, got 'no"),
    ],
)
def test_the_state_of_another_run_is_refused(other: BatchSizeSampler, message: str) -> None:
    sampler = BatchSizeSampler(100, 8)
    next(iter(sampler))
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(sampler.state_dict())


def test_the_state_of_another_schedule_is_refused() -> None:
    sampler = BatchSizeSampler(100, BatchSizeSchedule.table({0: 8, 50: 16}))
    other = BatchSizeSampler(100, BatchSizeSchedule.table({0: 8, 60: 16}))
    with pytest.raises(ValueError, match="of this schedule, got 'table 0:8 50:16' for"):
        other.load_state_dict(sampler.state_dict())
    with pytest.raises(ValueError, match="of the same schedule, got 'table 0:8 50:16' for None"):
        BatchSizeSampler(100, 8).load_state_dict(sampler.state_dict())


def test_the_state_of_another_release_is_refused() -> None:
    with pytest.raises(ValueError, match="must be of version 1, got 0"):
        BatchSizeSampler(100, 8).load_state_dict({"version": 0})


def test_a_pass_that_nobody_counts_has_no_state() -> None:
    sampler = BatchSizeSampler(100, 8)
    batches = iter(Ahead(sampler, 2))
    next(batches)
    for ask in (sampler.state_dict, lambda: sampler.delivered, lambda: sampler.examples_seen):
        with pytest.raises(RuntimeError, match=r"for batch in sampler\.follow\(loader\)"):
            ask()


def test_a_pass_without_workers_counts_itself() -> None:
    sampler = BatchSizeSampler(100, 8)
    batches = iter(Ahead(sampler, 0))
    next(batches)
    next(batches)
    assert (sampler.delivered, sampler.examples_seen, sampler.state_dict()["position"]) == (
        2,
        16,
        16,
    )


def test_chunks_are_counted_by_following_only() -> None:
    sampler = BatchSizeSampler(100, 8, chunk_size=10)
    batches = iter(Ahead(sampler, 0))
    next(batches)
    with pytest.raises(RuntimeError, match="`follow` must be iterated"):
        sampler.state_dict()
    with pytest.raises(RuntimeError, match="got chunk_size=10"):
        iter(sampler).state_dict()


def test_a_loader_of_another_sampler_is_noticed() -> None:
    sampler = BatchSizeSampler(100, 8)
    with pytest.raises(RuntimeError, match="a batch that it never drew"):
        next(sampler.follow(Ahead(BatchSizeSampler(100, 8), 0)))


def test_two_passes_at_a_time_are_noticed() -> None:
    sampler = BatchSizeSampler(100, 8)
    first = iter(sampler)
    next(first)
    next(iter(sampler))
    with pytest.raises(RuntimeError, match="one pass at a time"):
        next(first)
