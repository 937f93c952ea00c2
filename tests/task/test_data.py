"""Batches of any size from any data set. Oracle: counting every example."""

import random
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    get_worker_info,
)

from rightbatch.errors import TaskError
from rightbatch.task.data import Source, examples_in, source_from, to_device


class Recording(Dataset[int]):
    """The numbers below ``length``, each of which notes that it was asked for."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        self.asked.append(index)
        return index


class Counting(IterableDataset[int]):
    """The numbers below ``length`` as a stream; workers share it out."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Iterator[int]:
        info = get_worker_info()
        share = (0, 1) if info is None else (info.id, info.num_workers)
        return iter(range(share[0], self.length, share[1]))


def source(dataset: Any, *, num_workers: int = 0) -> Source:
    return source_from(dataset, collate_fn=None, num_workers=num_workers)


def draw(made: Source, size: int, *, epochs: int | None = 1, seed: int = 0) -> list[list[int]]:
    return [batch.tolist() for batch in made.loader(size, seed=seed, epochs=epochs)]


def flat(batches: list[list[int]]) -> list[int]:
    return [index for batch in batches for index in batch]


# Every example once per epoch; full batches without end.


@given(length=st.integers(2, 40), size=st.integers(1, 50), epochs=st.integers(1, 3))
@pytest.mark.parametrize("kind", [range, Counting])
def test_each_example_comes_once_per_epoch(kind: type, length: int, size: int, epochs: int) -> None:
    batches = draw(source(kind(length)), size, epochs=epochs)
    assert Counter(flat(batches)) == Counter(list(range(length)) * epochs)
    assert all(len(batch) == size for batch in batches[:-1])
    if kind is range:  # also in every single epoch, though batches run across their ends
        numbers = flat(batches)
        for start in range(0, length * epochs, length):
            assert sorted(numbers[start : start + length]) == list(range(length))


@given(length=st.integers(2, 40), size=st.integers(1, 50))
@pytest.mark.parametrize("kind", [range, Counting])
def test_endless_batches_are_always_full(kind: type, length: int, size: int) -> None:
    batches = islice(source(kind(length)).loader(size, seed=0, epochs=None), 5)
    assert [len(batch) for batch in batches] == [size] * 5


def test_each_epoch_has_its_own_order() -> None:
    numbers = flat(draw(source(range(20)), 20, epochs=3))
    epochs = {tuple(numbers[start : start + 20]) for start in (0, 20, 40)}
    assert len(epochs) == 3
    assert tuple(range(20)) not in epochs


def test_a_seed_decides_the_order() -> None:
    made = source(range(20))
    assert draw(made, 4, seed=1) == draw(made, 4, seed=1)
    assert draw(made, 4, seed=1) != draw(made, 4, seed=2)


# Whatever can be drawn from.


@pytest.mark.parametrize(
    "dataset",
    [
        [0, 1, 2, 3, 4],
        (0, 1, 2, 3, 4),
        range(5),
        np.arange(5),
        torch.arange(5),
        {0: 0, 1: 1, 2: 2, 3: 3, 4: 4},
        Recording(5),
        DataLoader(range(5), batch_size=2),
        DataLoader(range(5), batch_size=2, shuffle=True),
        DataLoader(range(5), batch_size=2, drop_last=True),
        DataLoader(Counting(5), batch_size=2),
        Counting(5),
        {0, 1, 2, 3, 4},
    ],
    ids=lambda value: type(value).__name__,
)
def test_takes(dataset: Any) -> None:
    assert sorted(flat(draw(source(dataset), 2))) == [0, 1, 2, 3, 4]


def test_streams_have_no_length() -> None:
    assert source(Counting(5)).num_examples is None
    loader = DataLoader(Counting(5), batch_size=2)
    assert (source(loader).num_examples, source(loader).sampler) == (None, None)
    assert source(range(5)).num_examples == 5


def test_a_stream_of_fewer_examples_than_the_batch_starts_again() -> None:
    batches = source(Counting(3)).loader(7, seed=0, epochs=None)
    assert next(iter(batches)).tolist() == [0, 1, 2, 0, 1, 2, 0]


# Refusals.


class OnePass(IterableDataset[int]):
    """Looks like a stream, but is spent after one epoch."""

    def __init__(self) -> None:
        self.rest = iter(range(5))

    def __iter__(self) -> Iterator[int]:
        return self.rest


def test_a_stream_that_ends_for_good_is_refused_in_its_second_epoch() -> None:
    batches = iter(source(OnePass()).loader(5, seed=0, epochs=None))
    assert next(batches).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(TaskError, match="got none in epoch 2 of OnePass"):
        next(batches)


class Silent(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(())


def test_a_sampler_that_yields_nothing_is_refused_instead_of_waited_for() -> None:
    loader = DataLoader(range(5), batch_size=2, sampler=Silent())
    with pytest.raises(TaskError, match="got none in epoch 1 of Silent"):
        next(iter(source(loader).loader(2, seed=0, epochs=None)))


@pytest.mark.parametrize(
    "options",
    [{"batch_size": None}, {"batch_sampler": BatchSampler(range(5), 2, drop_last=False)}],
    ids=["off", "own"],
)
def test_a_loader_with_batching_of_its_own_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(TaskError, match="must batch by `batch_size`, got batch_size=None"):
        source(DataLoader(range(5), **options))


def test_a_short_sampler_is_too_few_examples() -> None:
    loader = DataLoader(range(5), batch_size=2, sampler=SubsetRandomSampler([3]))
    with pytest.raises(TaskError, match="at least two examples, got 1"):
        source(loader)


# The user's loader and random states.


def test_the_users_loader_is_never_iterated() -> None:
    class Watched(DataLoader[Any]):
        def __iter__(self) -> Any:
            raise AssertionError("the user's loader was iterated")

    assert sorted(flat(draw(source(Watched(range(5), batch_size=2)), 2))) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize(
    "dataset",
    [
        range(20),
        Counting(20),
        DataLoader(range(20), batch_size=2, shuffle=True),
        DataLoader(range(20), batch_size=2, sampler=WeightedRandomSampler([1.0] * 20, 20)),
    ],
    ids=["map", "stream", "shuffling loader", "weighted loader"],
)
def test_global_random_states_stay_where_they_are(dataset: Any, epochs: int) -> None:
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    draw(source(dataset), 3, epochs=epochs)
    after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert before == after


def test_the_users_generators_stay_where_they_are() -> None:
    mine, its = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    sampler = WeightedRandomSampler([1.0] * 20, 20, generator=its)
    loader = DataLoader(range(20), batch_size=2, sampler=sampler, generator=mine)
    before = (mine.get_state().tolist(), its.get_state().tolist())
    draw(source(loader), 3, epochs=2)
    assert (mine.get_state().tolist(), its.get_state().tolist()) == before
    assert sampler.generator is its


# Samplers.


def test_a_weighted_sampler_is_honoured_and_follows_the_seed() -> None:
    """Weight zero is never drawn; an epoch has the sampler's length."""
    sampler = WeightedRandomSampler([1.0, 0.0] * 10, 30)
    made = source(DataLoader(range(20), batch_size=4, sampler=sampler))
    assert made.num_examples == 30
    numbers = flat(draw(made, 7, seed=1))
    assert len(numbers) == 30
    assert all(number % 2 == 0 for number in numbers)
    assert draw(made, 7, seed=1) == draw(made, 7, seed=1)
    assert draw(made, 7, seed=1) != draw(made, 7, seed=2)


def test_a_subset_stays_a_subset() -> None:
    loader = DataLoader(range(20), batch_size=4, sampler=SubsetRandomSampler([3, 5, 8]))
    assert sorted(flat(draw(source(loader), 2))) == [3, 5, 8]


def test_a_sampler_without_length_or_generator_is_iterated_as_it_is() -> None:
    class Backwards(Sampler[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(4, -1, -1))

    made = source(DataLoader(range(5), batch_size=2, sampler=Backwards()))
    assert made.num_examples == 5
    assert flat(draw(made, 2)) == [4, 3, 2, 1, 0]


def test_a_plain_list_of_indices_serves_as_sampler() -> None:
    loader = DataLoader(range(9), batch_size=2, sampler=[7, 3, 5])
    assert flat(draw(source(loader), 2)) == [7, 3, 5]


def test_a_sampler_that_counts_its_epochs_keeps_its_count() -> None:
    class Counted(Sampler[int]):
        def __init__(self) -> None:
            self.epoch = 0

        def __iter__(self) -> Iterator[int]:
            self.epoch += 1
            return iter([self.epoch, 0])

    sampler = Counted()
    loader = DataLoader(range(5), batch_size=2, sampler=sampler)
    assert flat(draw(source(loader), 2, epochs=3)) == [1, 0, 2, 0, 3, 0]
    assert sampler.epoch == 0


def test_an_unshuffled_loader_is_shuffled_by_us() -> None:
    made = source(DataLoader(range(20), batch_size=4, shuffle=False))
    assert flat(draw(made, 4)) != list(range(20))
    assert sorted(flat(draw(made, 4))) == list(range(20))


def test_a_bootstrap_of_an_epochs_length_is_no_plain_shuffle() -> None:
    loader = DataLoader(range(20), batch_size=4, sampler=RandomSampler(range(20), replacement=True))
    assert max(Counter(flat(draw(source(loader), 4))).values()) > 1


def test_a_bootstrap_and_a_share_of_an_epoch_are_kept() -> None:
    bootstrap = RandomSampler(range(5), replacement=True, num_samples=50)
    numbers = flat(draw(source(DataLoader(range(5), batch_size=2, sampler=bootstrap)), 7))
    assert len(numbers) == 50
    assert max(Counter(numbers).values()) > 1
    share = RandomSampler(range(20), num_samples=8)
    assert len(flat(draw(source(DataLoader(range(20), batch_size=2, sampler=share)), 3))) == 8


# Workers and the loader's other settings.


def test_workers_draw_the_same_batches() -> None:
    alone = draw(source(range(20)), 3, epochs=2)
    assert draw(source(range(20), num_workers=2), 3, epochs=2) == alone


def test_workers_share_out_a_stream() -> None:
    numbers = flat(draw(source(Counting(20), num_workers=2), 3, epochs=2))
    assert Counter(numbers) == Counter(list(range(20)) * 2)


class Slice(IterableDataset[int]):
    """Shared out by an attribute that the worker's start sets, as PyTorch's manual shows."""

    def __init__(self) -> None:
        self.start, self.step = 0, 1

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, 10, self.step))


def share_out(worker_id: int) -> None:
    info = get_worker_info()
    info.dataset.start, info.dataset.step = worker_id, info.num_workers


def test_a_worker_sees_the_users_stream_when_it_starts() -> None:
    loader = DataLoader(Slice(), batch_size=2, num_workers=2, worker_init_fn=share_out)
    assert Counter(flat(draw(source(loader), 3, epochs=1))) == Counter(range(10))


def test_a_loaders_settings_are_taken_over() -> None:
    loader = DataLoader(
        range(5),
        batch_size=2,
        num_workers=1,
        prefetch_factor=3,
        collate_fn=sum,
        worker_init_fn=share_out,
        timeout=9,
    )
    private = source(loader).loader(2, seed=0, epochs=1)
    assert (private.num_workers, private.prefetch_factor, private.timeout) == (1, 3, 9)
    assert private.collate_fn is sum
    assert private.worker_init_fn is share_out


def test_arguments_win_over_a_loaders_settings() -> None:
    loader = DataLoader(range(5), batch_size=2, collate_fn=sum)
    made = source_from(loader, collate_fn=max, num_workers=1)
    assert (made.collate_fn, made.num_workers, made.batch_size) == (max, 1, 2)


# Counting and moving batches.


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Record:
    name: str
    x: Tensor


ZEROS = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        (ZEROS, 3),
        ((ZEROS, torch.zeros(5)), 3),
        ([["a", "b"], ZEROS], 3),
        ({"step": torch.tensor(1), "x": {"deep": ZEROS}}, 3),
        (Pair(ZEROS, ZEROS), 3),
        (Record("a", ZEROS), 3),
        (torch.zeros(0, 2), 0),
        (torch.tensor(1.0), None),
        ("abc", None),
        (b"abc", None),
        (["abc", "d"], None),
        (7, None),
        (None, None),
        ({}, None),
        (Record, None),
    ],
    ids=repr,
)
def test_counts_examples(batch: Any, count: int | None) -> None:
    assert examples_in(batch) == count


@pytest.mark.parametrize(
    "batch",
    [
        (ZEROS, "a", 1),
        [ZEROS, ZEROS],
        {"x": ZEROS, "names": ["a", "b"]},
        OrderedDict(x=ZEROS),
        defaultdict(list, x=ZEROS),
        Pair(ZEROS, ZEROS),
        Record("a", ZEROS),
        "abc",
        None,
    ],
    ids=lambda value: type(value).__name__,
)
def test_moving_keeps_containers_and_leaves_the_batch_alone(batch: Any) -> None:
    moved = to_device(batch, torch.device("meta"))
    assert type(moved) is type(batch)
    assert "meta" not in repr(batch)
    assert ("meta" in repr(moved)) is ("tensor" in repr(batch))


def test_moving_keeps_a_default() -> None:
    moved = to_device(defaultdict(list, x=ZEROS), torch.device("meta"))
    assert moved["absent"] == []
    assert moved["x"].device.type == "meta"
