"""Cutting and joining by structure: the oracle is the same structure, made of the part by hand."""

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from rightbatch.batches import PerExample, Regrouped, micro_batches

Make = Callable[[list[int]], Any]  # what a batch of these examples looks like

Pair = namedtuple("Pair", ["x", "y"])


class Color(Enum):
    RED = 1


@dataclass
class Record:
    x: Any
    y: Any
    rest: int = field(default=0, init=False)


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, Record):
        return same(one.x, other.x) and same(one.y, other.y)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


ROWS: list[Make] = [
    lambda numbers: torch.tensor(numbers),
    lambda numbers: torch.tensor(numbers)[:, None] * torch.ones(2, 3)[0],
    lambda numbers: np.array(numbers, dtype=np.float32),
    lambda numbers: np.array(numbers, dtype=np.int64)[:, None, None].repeat(2, 1),
    lambda numbers: np.array([f"caption {number}" for number in numbers], dtype="<U12"),
]
ENTRIES: list[Make] = [  # none of as many rows as a batch has examples
    lambda numbers: [str(number) for number in numbers],
    lambda numbers: tuple(float(number) for number in numbers),
    lambda numbers: [torch.full((20 + number,), number) for number in numbers],
    lambda numbers: tuple(np.full((20, number), number) for number in numbers),
    lambda numbers: [{"boxes": torch.full((20 + number, 4), number)} for number in numbers],
    lambda numbers: [torch.ones(20) if number % 2 else None for number in numbers],
    lambda numbers: [[number] * (20 + number) for number in numbers],
    lambda numbers: PerExample([torch.full((number,), number) for number in numbers]),
]
WHOLE: list[Make] = [
    lambda numbers: 7,
    lambda numbers: "all of them",
    lambda numbers: None,
    lambda numbers: torch.tensor(0.5),
    lambda numbers: np.float32(0.5),
    lambda numbers: Color.RED,
    lambda numbers: torch.Size([3, 28, 28]),
    lambda numbers: torch.float32,
]


class Structure(NamedTuple):
    make: Make
    columns: frozenset[int] = frozenset()  # lengths of its lists of columns


def listed(kind: type) -> Callable[[list[Structure]], Structure]:
    def of(parts: list[Structure]) -> Structure:
        lengths = frozenset([len(parts)]).union(*(part.columns for part in parts))
        return Structure(lambda numbers: kind([part.make(numbers) for part in parts]), lengths)

    return of


def named(kind: Callable[..., Any]) -> Callable[[tuple[Structure, Structure]], Structure]:
    def of(parts: tuple[Structure, Structure]) -> Structure:
        x, y = parts
        return Structure(
            lambda numbers: kind(x=x.make(numbers), y=y.make(numbers)), x.columns | y.columns
        )

    return of


def nested(inner: st.SearchStrategy[Structure]) -> st.SearchStrategy[Structure]:
    lists = st.lists(inner, min_size=1, max_size=4)
    pairs = st.tuples(inner, st.one_of(inner, st.sampled_from(WHOLE).map(Structure)))
    return st.one_of(
        *(lists.map(listed(kind)) for kind in (list, tuple)),
        *(pairs.map(named(kind)) for kind in (dict, OrderedDict, Pair, Record)),
    )


STRUCTURES = st.recursive(st.sampled_from(ROWS + ENTRIES).map(Structure), nested, max_leaves=6)


@given(STRUCTURES, st.integers(1, 9), st.integers(1, 10))
def test_parts_are_what_they_would_be_by_hand(structure: Structure, count: int, size: int) -> None:
    assume(count not in structure.columns)  # such may be refused, see below

    def whole(numbers: list[int]) -> Any:
        return {"number": torch.tensor(numbers), "more": structure.make(numbers)}

    numbers = list(range(count))
    parts = list(micro_batches(whole(numbers), size))
    cut = [numbers[start : start + size] for start in range(0, count, size)]
    assert [found for _, found in parts] == [len(part) for part in cut]
    for (part, _), expected in zip(parts, cut, strict=True):
        assert same(part, whole(expected))


@given(STRUCTURES, st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(1, 9))
def test_chunks_are_joined_as_by_hand(structure: Structure, counts: list[int], size: int) -> None:
    assume(not structure.columns.intersection(counts))

    def whole(numbers: list[int]) -> Any:
        return torch.tensor(numbers), structure.make(numbers)

    numbers, starts = list(range(sum(counts))), [0, *accumulate(counts)]
    chunks = [whole(numbers[start:stop]) for start, stop in pairwise(starts)]
    cut = [numbers[start : start + size] for start in range(0, len(numbers), size)]
    for part, expected in zip(Regrouped(chunks, size), cut, strict=True):
        assert same(part, whole(expected))


def boxes(*counts: int) -> list[dict[str, Tensor]]:
    return [{"boxes": torch.full((count, 4), number)} for number, count in enumerate(counts)]


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        # Sequences of unequal length, one as long as there are examples.
        (
            ([torch.ones(5), torch.ones(4), torch.ones(2), torch.ones(3)], torch.arange(4)),
            ([torch.ones(2), torch.ones(3)], torch.tensor([2, 3])),
        ),
        # Detection: the boxes of an image that happen to be as many as the images.
        (
            (torch.arange(4).expand(2, 4).mT, boxes(3, 4, 5, 4)),
            (torch.tensor([[2, 2], [3, 3]]), boxes(3, 4, 5, 4)[2:]),
        ),
        ((torch.arange(4), boxes(4, 4, 4, 4)), (torch.tensor([2, 3]), boxes(4, 4, 4, 4)[2:])),
        (([torch.ones(3)] * 4, boxes(1, 2, 3, 4)), ([torch.ones(3)] * 2, boxes(1, 2, 3, 4)[2:])),
        # Nothing collated at all.
        (boxes(1, 2, 3, 4), boxes(1, 2, 3, 4)[2:]),
        (["a", "b", "c", "d"], ["c", "d"]),
        (
            PerExample([torch.ones(4)] * 4),
            PerExample([torch.ones(4)] * 2),
        ),
        # Columns, by torch's own collation of pairs of pairs.
        (
            [[torch.arange(4), torch.arange(4)], torch.arange(4)],
            [[torch.tensor([2, 3])] * 2, torch.tensor([2, 3])],
        ),
        (
            [torch.arange(4), torch.arange(4), torch.arange(4), torch.arange(4)],
            [torch.tensor([2, 3])] * 4,
        ),
        ((np.arange(4), "text", None, 7), (np.array([2, 3]), "text", None, 7)),
        ((torch.arange(4), (None, None)), (torch.tensor([2, 3]), (None, None))),
    ],
)
def test_common_batches_are_cut_as_they_mean(batch: Any, expected: Any) -> None:
    (first, count), (second, count_too) = micro_batches(batch, 2)
    assert (count, count_too) == (2, 2)
    assert same(second, expected)
    assert type(first) is type(second)


def test_the_whole_batch_is_handed_on_as_it_is() -> None:
    batch = ([torch.ones(2), torch.ones(2)], torch.zeros(2))  # readable in two ways, but not cut
    ((part, count),) = micro_batches(batch, 2)
    assert part is batch
    assert count == 2


def test_entries_of_two_kinds_can_only_be_columns() -> None:
    tokens, mask = torch.arange(10).view(2, 5), torch.ones(2, 5)
    (first, _), (second, _) = micro_batches(([tokens, mask], torch.arange(2)), 1)
    assert same(first, ([tokens[:1], mask[:1]], torch.tensor([0])))
    assert same(second, ([tokens[1:], mask[1:]], torch.tensor([1])))


SQUARE = [torch.ones(2), torch.ones(2)]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            {"position": torch.zeros(1, 5), "tokens": torch.zeros(4, 5)},
            r"got batch\['position'\] of 1 rows, batch\['tokens'\] of 4 rows",
        ),
        (
            {"x": torch.zeros(4), "classes": torch.ones(5)},
            r"batch\['classes'\] of 5 rows.*keep what holds for all of them in the model",
        ),
        ((torch.zeros(4), (3, 28, 28)), r"batch\[0\] of 4 rows, batch\[1\] of 3 entries"),
        ((torch.zeros(4), boxes(1, 2)), r"batch\[1\] of 2 entries"),
        ((torch.zeros(4), object()), r"batch\[1\], a object"),
        (Pair(torch.zeros(4), {1, 2}), r"batch\['y'\], a set"),
        (Record(torch.zeros(4), {1, 2}), r"batch\['y'\], a set"),
        ([torch.ones(5), torch.ones(7)], r"batch\[0\] of 5 rows, batch\[1\] of 7 rows"),
        (pack_sequence([torch.ones(3), torch.ones(2)]), "got batch, a PackedSequence"),
        (torch.ones(2, 2).to_sparse(), "got batch, a Tensor"),
        ("abcd", "`batch` must hold examples, got str"),
        (torch.tensor(1.0), "`batch` must hold examples, got Tensor"),
        # Two readings of different counts.
        ([[torch.ones(4)] * 3, [torch.ones(4)] * 3], "readable in one way, got 2 or 3 or 4"),
        ({"x": [torch.ones(4)] * 3}, "readable in one way, got 3 or 4 examples"),
        ([{"x": torch.ones(3)}, {"x": torch.ones(3)}], "readable in one way, got 2 or 3"),
        # Two readings of one count.
        ((SQUARE, torch.zeros(2)), r"got a list at batch\[0\] of 2 entries of 2 rows each"),
    ],
)
def test_what_is_not_certain_is_refused(batch: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(micro_batches(batch, 1))


def test_other_chunks_may_settle_what_one_leaves_open() -> None:
    square = (SQUARE, torch.zeros(2))
    oblong = ([torch.ones(3), torch.ones(3)], torch.zeros(3))
    (joined,) = Regrouped([square, oblong], 5)
    assert same(joined, ([torch.ones(5), torch.ones(5)], torch.tensor([0.0] * 5)))


@pytest.mark.parametrize(
    "chunks",
    [
        [{"x": torch.zeros(2)}, {"x": torch.zeros(2), "y": torch.zeros(2)}],
        [{"x": torch.zeros(2)}, {"x": np.zeros(2)}],
        [{"x": torch.zeros(2), "y": 1}, {"x": torch.zeros(2), "y": None}],
        [(torch.zeros(2), torch.zeros(2)), (torch.zeros(2), torch.zeros(2), 7)],
    ],
)
def test_chunks_of_another_structure_are_refused(chunks: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"must be alike .*, got .* that differ"):
        list(Regrouped(chunks, 4))


def test_a_batch_of_many_texts_is_read_once() -> None:
    class Counted(list[str]):
        read = 0

        def __iter__(self) -> Any:
            type(self).read += 1
            return super().__iter__()

    texts = Counted(["a"] * 64)
    assert len(list(micro_batches((torch.arange(64), texts), 1))) == 64
    assert Counted.read < 10
