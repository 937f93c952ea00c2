import statistics
from dataclasses import dataclass
from itertools import cycle

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, SubsetRandomSampler

from rightbatch.hardware.pool import random_examples, with_pool
from rightbatch.hardware.workload import NO_CAP, host_batches
from rightbatch.hardware.worst_case import find_longest
from rightbatch.task import Task
from rightbatch.task.data import examples_in
from rightbatch.tasks import load_task
from rightbatch.testing import FakeClock
from tests.laws import assert_same_world, snapshot
from tests.zoo import WORKING, Specimen


def task_of(dataset, **options) -> Task:
    model = nn.Linear(1, 1)
    return Task(model, torch.optim.SGD(model.parameters(), lr=0.1), dataset, max, **options)


@dataclass
class Row:
    """An example of a class of its own."""

    row: torch.Tensor


class Reading(Dataset):
    """Counts what is read of it."""

    def __init__(self, examples, size=1, effect=lambda: None):
        self.examples, self.size, self.effect, self.read = examples, size, effect, 0

    def __len__(self):
        return self.examples

    def __getitem__(self, index):
        self.read += 1
        self.effect()
        return torch.full((self.size,), float(index))


@pytest.mark.parametrize(("examples", "read"), [(3, 3), (256, 256), (5000, 256)])
def test_a_pool_is_as_long_and_reads_little(examples, read):
    data = Reading(examples)
    pooled = with_pool(task_of(data))
    assert pooled.num_examples == examples
    assert data.read == read
    assert len(next(host_batches(pooled, min(examples, 1000), seed=0))) == min(examples, 1000)
    assert data.read == read


def test_large_examples_end_it():
    data = Reading(100, size=3 * 2**20)  # float64: 24 MiB each
    assert len(with_pool(task_of(data)).source.dataset.examples) == 3


@pytest.mark.parametrize(
    "make", [lambda row: row.numpy(), Row, lambda row: {"row": row}], ids=["array", "class", "dict"]
)
def test_large_examples_end_it_whatever_holds_them(make):
    data = [make(torch.zeros(4 * 2**20)) for _ in range(6)]  # float64: 32 MiB each
    assert len(with_pool(task_of(data)).source.dataset.examples) == 3


def test_slow_examples_end_it():
    clock = FakeClock()
    data = Reading(100, effect=lambda: clock.advance(0.5))
    assert len(with_pool(task_of(data), clock=clock).source.dataset.examples) == 4


def test_a_stream_becomes_a_pool_without_an_end():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(torch.arange(9.0))

    pooled = with_pool(task_of(Stream(), max_batch_size=50))
    assert len(pooled.source.dataset) == NO_CAP
    assert next(host_batches(pooled, 50, seed=0)).shape == (50,)


def test_an_example_that_is_changed_in_place_stays_as_it_was():
    pooled = with_pool(task_of(Reading(4)))
    pooled.source.dataset[0].add_(100)
    assert pooled.source.dataset[0].item() < 100


@pytest.mark.parametrize("specimen", WORKING, ids=str)
def test_the_task_is_left_as_it_was(specimen: Specimen):
    task = specimen.make()
    before = snapshot(task)
    with task.preserved(weights=False):
        pooled = with_pool(task)
    assert_same_world(before, snapshot(task))
    assert task.source.dataset is not pooled.source.dataset


def test_a_row_of_a_large_tensor_does_not_bring_the_tensor_along():
    pooled = with_pool(task_of(torch.zeros(100_000, 50)))
    example = pooled.source.dataset.examples[0]
    assert example.untyped_storage().nbytes() == example.nbytes


def test_a_data_set_that_makes_batches_itself_stays():
    class Batched(Reading):
        def __getitems__(self, indices):
            return torch.tensor(indices, dtype=torch.float64)

    task = task_of(Batched(50), collate_fn=lambda batch: batch)
    pooled = with_pool(task)
    assert pooled is task
    assert next(host_batches(pooled, 20, seed=0)).shape == (20,)
    assert find_longest(task) is None


class Damaged(Reading):
    """Raises where the sampler below never goes, as training never does."""

    def __getitem__(self, index):
        if index < 100:
            raise ValueError(f"corrupt example {index}")
        return super().__getitem__(index)

    def __getitems__(self, indices):
        return [self[index] for index in indices]


def sampled(sampler) -> Task:
    return task_of(DataLoader(Damaged(400), batch_size=8, sampler=sampler))


def test_only_what_the_users_sampler_draws_is_looked_at():
    task = sampled(SubsetRandomSampler(range(100, 130)))
    drawn = [int(example[0]) for example in random_examples(task, seed=0)]
    assert sorted(drawn) == list(range(100, 130))
    assert with_pool(task).num_examples == 30
    assert find_longest(task) is None  # all are of one length


class Endless(Sampler):
    """From the smallest on, and over again."""

    def __iter__(self):
        return cycle(range(100, 400))


def test_a_sampler_without_an_end_is_looked_at_once_and_in_a_random_order():
    """A sampler that goes by length would show short examples first."""
    drawn = [int(example[0]) for example in random_examples(sampled(Endless()), seed=0)]
    assert len(drawn) == 400  # of the data set: the sampler has no length
    assert set(drawn) == set(range(100, 400))
    assert drawn != sorted(drawn)
    error = statistics.stdev(drawn) / 8  # of a mean of 64
    assert statistics.mean(drawn[:64]) == pytest.approx(statistics.mean(drawn), abs=4 * error)


def test_a_part_of_a_data_set_is_pooled():
    part = torch.utils.data.Subset(Reading(900), range(300))
    assert len(with_pool(task_of(part)).source.dataset.examples) == 256


@pytest.mark.data
@pytest.mark.parametrize("name", ["mnist", "bikes", "shakespeare"])
def test_the_built_in_tasks_still_make_their_batches(name):
    pooled = with_pool(load_task(name))
    assert examples_in(next(host_batches(pooled, 40, seed=0))) == 40
