"""Joining and cutting: every example once, in order, whatever structure carries it."""

import json
from collections import OrderedDict, namedtuple
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rightbatch.batches import BatchSizeSchedule, Regrouped, micro_batches

COUNTS = st.lists(st.integers(0, 6), max_size=12)
SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def chunks(counts: list[int]) -> list[Tensor]:
    return list(torch.arange(sum(counts)).split(counts)) if counts else []


def taken(batches: Regrouped, sizes: list[int]) -> Iterator[list[int]]:
    for batch in batches:
        batches.set_batch_size(sizes[batches.examples_seen % len(sizes)])
        yield batch.tolist()


@given(COUNTS, SIZES)
def test_every_example_once_and_in_order(counts: list[int], sizes: list[int]) -> None:
    got = list(taken(Regrouped(chunks(counts), sizes[0]), sizes))
    assert [number for batch in got for number in batch] == list(range(sum(counts)))
    asked, seen = sizes[0], 0
    for batch in got:
        assert len(batch) == min(asked, sum(counts) - seen)
        seen += len(batch)
        asked = sizes[seen % len(sizes)]


@given(COUNTS, SIZES)
def test_how_the_chunks_were_cut_does_not_matter(counts: list[int], sizes: list[int]) -> None:
    cut = list(taken(Regrouped(chunks(counts), sizes[0]), sizes))
    whole = chunks([sum(counts)] if counts else [])
    assert list(taken(Regrouped(whole, sizes[0]), sizes)) == cut


@given(COUNTS, SIZES, st.integers(0, 15))
def test_resumed_is_uninterrupted(counts: list[int], sizes: list[int], killed_after: int) -> None:
    whole = list(taken(Regrouped(chunks(counts), sizes[0]), sizes))
    first, second = (Regrouped(chunks(counts), sizes[0]) for _ in range(2))
    seen = list(islice(taken(first, sizes), min(killed_after, len(whole))))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert seen + list(taken(second, sizes)) == whole
    assert second.examples_seen == sum(counts)


def test_a_state_may_be_loaded_into_what_has_run_before() -> None:
    first, second = (Regrouped(chunks([4, 4]), 3) for _ in range(2))
    next(iter(first))
    list(second)
    second.load_state_dict(first.state_dict())
    assert [batch.tolist() for batch in second] == [[3, 4, 5], [6, 7]]


def test_the_next_pass_begins_at_the_front() -> None:
    batches = Regrouped(chunks([4, 3]), 5)
    assert [[batch.tolist() for batch in batches] for _ in range(2)] == [
        [[0, 1, 2, 3, 4], [5, 6]]
    ] * 2
    assert batches.examples_seen == 14


def test_a_schedule_counts_over_devices_and_passes() -> None:
    batches = Regrouped(chunks([4, 4]), BatchSizeSchedule.table({0: 4, 20: 6}), world_size=2)
    sizes = [[len(batch) for batch in batches] for _ in range(2)]
    # Half of each four; from the twentieth example on half of each six.
    assert sizes == [[2, 2, 2, 2], [2, 3, 3]]
    assert batches.batch_size == 6


def test_the_last_smaller_batch_can_be_dropped() -> None:
    batches = Regrouped(chunks([4, 4]), 3, drop_last=True)
    assert [batch.tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5]]
    assert batches.examples_seen == 6


Pair = namedtuple("Pair", ["x", "y"])


@dataclass
class Record:
    x: Tensor
    names: list[str]


def table(numbers: Tensor) -> dict[str, Any]:
    return {
        "x": numbers[:, None].expand(-1, 3),
        "names": [str(number.item()) for number in numbers],
        "nested": (numbers, [numbers + 1]),
        "scale": 7,
        "zero": torch.tensor(0.5),
    }


@pytest.mark.parametrize(
    "make",
    [
        lambda numbers: numbers,
        lambda numbers: [numbers, numbers + 1],
        lambda numbers: (numbers, [str(number.item()) for number in numbers]),
        lambda numbers: Pair(numbers, numbers + 1),
        lambda numbers: Record(numbers, [str(number.item()) for number in numbers]),
        lambda numbers: OrderedDict(x=numbers),
        table,
    ],
)
def test_any_structure_is_joined_and_cut(make: Any) -> None:
    numbers = torch.arange(11)
    given_chunks = [make(part) for part in numbers.split([4, 4, 3])]
    for got, expected in zip(Regrouped(given_chunks, 6), numbers.split(6), strict=True):
        assert same(got, make(expected))


def same(one: Any, other: Any) -> bool:
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, Record):
        return same(one.x, other.x) and one.names == other.names
    if isinstance(one, tuple | list):
        return all(same(part, part_too) for part, part_too in zip(one, other, strict=True))
    return one == other


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([torch.zeros(2, 3), torch.zeros(2, 4)], r"all dimensions but the first, got \[\(3,\), \("),
        (
            [{"x": torch.zeros(2), "s": 1}, {"x": torch.zeros(2), "s": 2}],
            r"got int at batch\['s'\] that differ",
        ),
        (
            [
                {"x": torch.zeros(2), "s": torch.tensor(1)},
                {"x": torch.zeros(2), "s": torch.tensor(2)},
            ],
            r"got Tensor at batch\['s'\] that differ",
        ),
        (["ab", "cd"], "must hold examples, got str"),
        ([torch.tensor(1.0)], "must hold examples, got Tensor"),
    ],
)
def test_what_cannot_be_joined_is_refused(parts: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(Regrouped(parts, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "got batch_size=0"),
        ({"batch_size": 5, "world_size": 2}, "multiple of 2, .*take 4 or 6"),
        ({"batch_size": 4, "world_size": 0}, "got world_size=0"),
        (
            {"batch_size": BatchSizeSchedule.table({0: 4, 9: 5}), "world_size": 2},
            "got batch_size=5",
        ),
    ],
)
def test_impossible_sizes_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Regrouped([], **options)


def test_a_scheduled_size_is_not_set_by_hand() -> None:
    with pytest.raises(ValueError, match="must be called without a schedule"):
        Regrouped([], BatchSizeSchedule.table({0: 4})).set_batch_size(8)


def test_another_schedule_or_version_is_refused() -> None:
    state = Regrouped([], BatchSizeSchedule.table({0: 4})).state_dict()
    with pytest.raises(ValueError, match="of the same schedule, got 'table 0:4' for None"):
        Regrouped([], 4).load_state_dict(state)
    with pytest.raises(ValueError, match="must be of version 2, got 1"):
        Regrouped([], 4).load_state_dict({"version": 1})


@given(st.integers(1, 20), st.integers(1, 25))
def test_micro_batches_make_the_batch(count: int, size: int) -> None:
    batch = table(torch.arange(count))
    parts = list(micro_batches(batch, size))
    assert [part_size for _, part_size in parts] == [len(part["names"]) for part, _ in parts]
    assert all(part_size == size for _, part_size in parts[:-1])
    assert parts[-1][1] <= size
    assert torch.cat([part["x"] for part, _ in parts]).equal(batch["x"])


def test_micro_batches_hold_examples() -> None:
    with pytest.raises(ValueError, match="got micro_batch_size=0"):
        next(micro_batches(torch.zeros(3), 0))


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_pass_run_to_its_end_is_over(drop_last: bool) -> None:
    first, second, third = (Regrouped(chunks([13]), 5, drop_last=drop_last) for _ in range(3))
    expected = [batch.tolist() for batch in first]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [batch.tolist() for batch in second] == expected
    list(islice(first, len(expected)))  # left at the last batch
    third.load_state_dict(first.state_dict())
    assert [[batch.tolist() for batch in third] for _ in range(2)] == [[], expected]


def test_a_state_of_another_number_of_devices_is_refused() -> None:
    state = Regrouped(chunks([8]), 4, world_size=2).state_dict()
    with pytest.raises(ValueError, match="must be of the same world_size 1, got 2"):
        Regrouped(chunks([8]), 4).load_state_dict(state)


class Numbers(torch.utils.data.IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(8))


def test_a_pass_leaves_the_global_random_state_alone() -> None:
    loader = torch.utils.data.DataLoader(Numbers(), batch_size=3)
    before = torch.get_rng_state()
    assert [batch.tolist() for batch in Regrouped(loader, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert torch.equal(torch.get_rng_state(), before)


class Begins(list[Tensor]):
    """Draws from the global generator as a pass begins, as a loader does for its workers."""

    def __init__(self, parts: list[Tensor]) -> None:
        super().__init__(parts)
        self.drawn: list[float] = []

    def __iter__(self) -> Iterator[Tensor]:
        self.drawn.append(torch.rand(()).item())
        return super().__iter__()


def test_each_pass_and_seed_gives_workers_another_seed() -> None:
    whole, other, resumed = (Begins(chunks([4])) for _ in range(3))
    first, second = Regrouped(whole, 2), Regrouped(resumed, 2)
    list(first)
    second.load_state_dict(first.state_dict())
    list(first)
    list(second)
    list(Regrouped(other, 2, seed=1))
    assert resumed.drawn == whole.drawn[1:]
    assert len({*whole.drawn, *other.drawn}) == 3


def test_a_schedule_that_hears_no_noise_is_told() -> None:
    schedule = BatchSizeSchedule.noise(4, max_batch_size=8, dwell_examples=8)
    with pytest.warns(UserWarning, match="noise scale that nobody measures"):
        list(Regrouped(chunks([8]), schedule))


def test_whole_numbers_of_any_library_are_taken() -> None:
    batches = Regrouped(chunks([8]), np.int64(4), world_size=np.int64(2), seed=np.int64(2**40))
    assert [len(batch) for batch in batches] == [2, 2, 2, 2]
    json.dumps(batches.state_dict())
    assert [count for _, count in micro_batches(torch.zeros(3), np.int64(2))] == [2, 1]
