"""Seeded building leaves no trace. Oracle: the state before."""

import pytest
import torch
from torch import nn

from rightbatch.tasks.building import default_device, seeded_float32, split_rows


def test_one_seed_one_model_whatever_came_before() -> None:
    weights = []
    for seed in (3, 3, 4):
        torch.rand(5)
        with seeded_float32(seed):
            weights.append(nn.Linear(3, 3).weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("fails", [False, True])
def test_random_state_and_default_dtype_stay_as_they_were(fails: bool) -> None:
    before = torch.get_rng_state()
    try:
        with seeded_float32(0):
            assert nn.Linear(2, 2).weight.dtype == torch.float32
            if fails:
                raise RuntimeError("half-way")
    except RuntimeError:
        assert fails
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_default_dtype() == torch.float64  # as the test session has it


def test_the_split_is_a_partition_and_the_same_every_time() -> None:
    train, test = split_rows(100, 80)
    torch.manual_seed(99)
    again, _ = split_rows(100, 80)
    assert (len(train), len(test)) == (80, 20)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(100))
    assert torch.equal(train, again)
    assert train.tolist() != sorted(train.tolist())


def test_default_device_holds_tensors() -> None:
    assert torch.zeros(1, device=default_device()).item() == 0
