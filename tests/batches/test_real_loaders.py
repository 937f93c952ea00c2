"""The laws again with real worker processes, on few examples; and that the stand-in is true."""

import importlib.util
import json
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from rightbatch.batches import BatchSizeSampler, BatchSizeSchedule, Regrouped
from tests.batches.loaders import Ahead

few = settings(max_examples=8)
pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)


class Numbers(Dataset[Tensor]):
    """Each example is its own number."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor(index)


class Shards(IterableDataset[Tensor]):
    """A stream whose workers take every w-th number."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Iterator[Tensor]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        return map(torch.tensor, range(first, self.length, stride))


WORKERS = st.sampled_from([(0, None), (1, 1), (1, 3), (2, 1), (2, 2)])


def loader(
    sampler: BatchSizeSampler, length: int, workers: tuple[int, int | None], **options: Any
) -> DataLoader[Any]:
    return DataLoader(
        Numbers(length),
        batch_sampler=sampler,
        num_workers=workers[0],
        prefetch_factor=workers[1],
        **options,
    )


def ahead(workers: tuple[int, int | None]) -> int:
    return workers[0] * (workers[1] or 0)


def played(
    sampler: BatchSizeSampler, batches: Iterator[Tensor], moves: dict[int, int]
) -> Iterator[list[int]]:
    for batch in batches:
        if sampler.delivered in moves:
            sampler.set_batch_size(moves[sampler.delivered])
        yield batch.tolist()


@few
@given(
    WORKERS, st.none() | st.integers(1, 9), st.dictionaries(st.integers(1, 9), st.integers(1, 9))
)
def test_the_stand_in_does_what_workers_do(
    workers: tuple[int, int | None], chunk: int | None, moves: dict[int, int]
) -> None:
    real, standing = (BatchSizeSampler(23, 4, chunk_size=chunk) for _ in range(2))
    real_loader = loader(real, 23, workers)
    for _ in range(2):
        got = list(played(real, real.follow(real_loader), moves))
        expected = played(standing, standing.follow(Ahead(standing, ahead(workers))), moves)
        assert got == list(expected)
        assert sorted(number for batch in got for number in batch) == list(range(23))
        assert (real.drawn, real.delivered) == (standing.drawn, standing.delivered)


@pytest.mark.slow
@few
@given(
    WORKERS,
    st.none() | st.integers(1, 9),
    st.dictionaries(st.integers(1, 9), st.integers(1, 9), max_size=3),
    st.integers(1, 12),
)
def test_resumed_with_workers_is_uninterrupted(
    workers: tuple[int, int | None], chunk: int | None, moves: dict[int, int], killed_after: int
) -> None:
    def run(sampler: BatchSizeSampler) -> Iterator[list[int]]:
        batches = loader(sampler, 23, workers)
        for _ in range(sampler.epoch, 2):
            yield from played(sampler, sampler.follow(batches), moves)

    def sampler() -> BatchSizeSampler:
        return BatchSizeSampler(23, 4, chunk_size=chunk)

    whole = list(run(sampler()))
    first, second = sampler(), sampler()
    seen = list(islice(run(first), killed_after))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert seen + list(run(second)) == whole


def test_workers_that_persist_begin_each_epoch_afresh() -> None:
    sampler = BatchSizeSampler(10, 4)
    persistent = loader(sampler, 10, (1, 2), persistent_workers=True)
    epochs = [[batch.tolist() for batch in sampler.follow(persistent)] for _ in range(3)]
    assert epochs == [list(map(list, epoch)) for epoch in expected_epochs(10, 4, 3)]
    sizes = [[len(batch) for batch in epoch] for epoch in epochs]
    assert sizes == [[4, 4, 2]] * 3


def expected_epochs(length: int, size: int, epochs: int) -> list[list[list[int]]]:
    sampler = BatchSizeSampler(length, size)
    return [list(sampler) for _ in range(epochs)]


def test_a_schedule_arrives_on_time_with_workers() -> None:
    sampler = BatchSizeSampler(20, BatchSizeSchedule.table({0: 2, 6: 4}), shuffle=False)
    batches = [batch.tolist() for batch in loader(sampler, 20, (2, 2))]
    assert list(map(len, batches)) == [2, 2, 2, 4, 4, 4, 2]
    assert [number for batch in batches for number in batch] == list(range(20))


class Noisy(Numbers):
    """Each example is a random number, as an augmentation would draw it."""

    def __getitem__(self, index: int) -> Tensor:
        return torch.rand(())


def test_following_leaves_the_global_random_state_alone() -> None:
    def epochs() -> list[list[float]]:
        sampler = BatchSizeSampler(6, 3)
        noisy = DataLoader(Noisy(6), batch_sampler=sampler, num_workers=1)
        return [torch.cat(list(sampler.follow(noisy))).tolist() for _ in range(2)]

    before = torch.get_rng_state()
    first, second = epochs()
    assert torch.equal(torch.get_rng_state(), before)
    assert first != second  # every epoch draws anew
    torch.rand(3)
    assert epochs() == [first, second]


def test_workers_that_nobody_counts_are_noticed() -> None:
    sampler = BatchSizeSampler(20, 4)
    batches = iter(loader(sampler, 20, (1, 2)))
    next(batches)
    with pytest.raises(RuntimeError, match="`follow` must be iterated to know what was delivered"):
        sampler.state_dict()


def test_a_loader_without_workers_counts_itself() -> None:
    sampler = BatchSizeSampler(20, 4)
    batches = iter(loader(sampler, 20, (0, None)))
    next(batches)
    assert (sampler.delivered, sampler.state_dict()["position"]) == (1, 4)


def test_a_loader_out_of_order_is_refused() -> None:
    sampler = BatchSizeSampler(20, 4)
    with pytest.raises(ValueError, match="must deliver in order, got in_order=False"):
        next(sampler.follow(loader(sampler, 20, (1, 2), in_order=False)))


@few
@given(st.sampled_from([0, 1, 2]), st.integers(1, 7), st.lists(st.integers(1, 9), min_size=1))
def test_a_stream_is_regrouped_exactly(workers: int, chunk: int, sizes: list[int]) -> None:
    batches = Regrouped(DataLoader(Shards(23), batch_size=chunk, num_workers=workers), sizes[0])
    got = []
    for index, batch in enumerate(batches):
        got.append(batch.tolist())
        batches.set_batch_size(sizes[(index + 1) % len(sizes)])
    asked = [sizes[index % len(sizes)] for index in range(len(got))]
    assert [len(batch) for batch in got[:-1]] == asked[:-1]
    assert 0 < len(got[-1]) <= asked[-1]
    assert sorted(number for batch in got for number in batch) == list(range(23))


@pytest.mark.skipif(
    importlib.util.find_spec("torchdata") is None, reason="torchdata is not installed"
)
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
@pytest.mark.parametrize("workers", [(0, None), (2, 2)])
@pytest.mark.parametrize("killed_after", [1, 4, 9, 12])
def test_torchdatas_loader_resumes(workers: tuple[int, int | None], killed_after: int) -> None:
    stateful: Callable[..., Any] = importlib.import_module(
        "torchdata.stateful_dataloader"
    ).StatefulDataLoader

    def made() -> tuple[BatchSizeSampler, Any]:
        sampler = BatchSizeSampler(23, BatchSizeSchedule.table({0: 2, 9: 4}))
        return sampler, stateful(
            Numbers(23),
            batch_sampler=sampler,
            num_workers=workers[0],
            prefetch_factor=workers[1],
        )

    def epochs(batches: Any, count: int) -> Iterator[list[int]]:
        for _ in range(count):
            yield from (batch.tolist() for batch in batches)

    whole = list(epochs(made()[1], 2))  # nine batches, then six
    _, first = made()
    seen = list(islice(epochs(first, 2), killed_after))
    _, second = made()
    second.load_state_dict(first.state_dict())
    assert seen + list(epochs(second, 2 if killed_after <= 9 else 1)) == whole
