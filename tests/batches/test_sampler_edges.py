"""Where a pass ends, and what a sampler is made with, against an uninterrupted or plain one."""

import json
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from rightbatch.batches import BatchSizeSampler, BatchSizeSchedule, Regrouped
from tests.batches.loaders import Ahead
from tests.ranks import on_two_ranks


def saved(sampler: BatchSizeSampler) -> dict[str, Any]:
    return json.loads(json.dumps(sampler.state_dict()))


@pytest.mark.parametrize("ahead", [0, 3])
@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_pass_run_to_its_end_is_over(ahead: int, chunk_size: int | None, drop_last: bool) -> None:
    first, second = (
        BatchSizeSampler(26, 4, seed=3, chunk_size=chunk_size, drop_last=drop_last)
        for _ in range(2)
    )
    list(first.follow(Ahead(first, ahead)))
    second.load_state_dict(saved(first))
    assert len(second) == len(first)
    assert [batch.tolist() for batch in second.follow(Ahead(second, ahead))] == [
        batch.tolist() for batch in first.follow(Ahead(first, ahead))
    ]


@pytest.mark.parametrize("ahead", [0, 3])
def test_of_a_pass_left_at_its_last_batch_the_rest_is_empty(ahead: int) -> None:
    first, second = BatchSizeSampler(26, 13), BatchSizeSampler(26, 13)
    list(islice(first.follow(Ahead(first, ahead)), 2))
    second.load_state_dict(saved(first))
    assert second.epoch == 0
    assert [len(list(second.follow(Ahead(second, ahead)))) for _ in range(2)] == [0, 2]


def test_a_plain_pass_run_to_its_end_is_over_too() -> None:
    first, second = BatchSizeSampler(6, 3), BatchSizeSampler(6, 3)
    list(first)
    second.load_state_dict(saved(first))
    assert list(second) == list(first)


class Measured:
    noise_scale, low, high = 100.0, 100.0, 100.0


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_a_schedule_that_hears_no_noise_is_told(chunk_size: int | None) -> None:
    def sampler() -> tuple[BatchSizeSchedule, BatchSizeSampler]:
        schedule = BatchSizeSchedule.noise(4, max_batch_size=8, dwell_examples=8)
        return schedule, BatchSizeSampler(20, schedule, chunk_size=chunk_size)

    _, deaf = sampler()
    with pytest.warns(UserWarning, match="noise scale that nobody measures.*BatchSizeController"):
        list(deaf.follow(Ahead(deaf, 0)))
    schedule, hears = sampler()
    schedule.size_at(0, Measured())
    list(hears.follow(Ahead(hears, 0)))  # warnings are errors


def test_whole_numbers_of_any_library_are_taken() -> None:
    sampler = BatchSizeSampler(
        np.int64(12),
        np.int64(4),
        seed=np.int64(3),
        rank=np.int64(1),
        world_size=np.int64(2),
        chunk_size=np.int64(2),
    )
    sampler.set_batch_size(np.int32(6))
    json.dumps(sampler.state_dict())
    like = BatchSizeSampler(12, 6, seed=3, rank=1, world_size=2)
    sampler = BatchSizeSampler(np.int64(12), 6, seed=np.int64(3), rank=np.int64(1), world_size=2)
    assert list(sampler) == list(like)
    assert len(BatchSizeSampler(np.zeros((7, 2)), 7)) == 1  # an array is a data set


def test_seeds_of_any_size_make_orders_of_their_own() -> None:
    orders = {
        tuple(next(iter(BatchSizeSampler(50, 50, seed=seed)))) for seed in (0, -1, 2**40, 10**30)
    }
    assert len(orders) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": None}, "must be a whole number, got seed=None"),
        ({"seed": 1.5}, "must be a whole number, got seed=1.5"),
        ({"rank": 0.5, "world_size": 2}, "got rank=0.5"),
        ({"rank": 1}, "below world_size=1, got rank=1.*pass both"),
        ({"world_size": 2.0}, "got world_size=2.0"),
    ],
)
def test_odd_seeds_and_ranks_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchSizeSampler(8, 4, **options)


def drawn(rank: int) -> list[Any]:
    by_default = list(BatchSizeSampler(8, 4))
    alone = list(BatchSizeSampler(8, 4, rank=0, world_size=1))
    return [by_default, alone, [len(batch) for batch in Regrouped([torch.arange(8)], 4)]]


def test_the_group_that_is_initialised_shares_the_examples() -> None:
    first, second = on_two_ranks(drawn)
    expected = [list(BatchSizeSampler(8, 4, rank=rank, world_size=2)) for rank in (0, 1)]
    assert [first[0], second[0]] == expected
    assert sorted(number for batch in first[0] + second[0] for number in batch) == list(range(8))
    assert first[1] == second[1] == list(BatchSizeSampler(8, 4))
    assert first[2] == [2, 2, 2, 2]  # half of each batch of four
