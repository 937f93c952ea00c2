"""Accumulated gradients and how batches are cut. Oracles: the whole batch's gradient, divisors."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rightbatch import BatchSizeSchedule
from rightbatch.batches import nearest_valid
from rightbatch.control.accumulation import accumulation_for
from tests.control.doubles import ManyRanks, controlled
from tests.ranks import on_two_ranks


def tokens(count: int, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Sequences of 6 numbers each, of which the mask leaves 1 to 6."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 6, 3, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, 7, (count, 1), generator=generator)
    return inputs, (torch.arange(6) < lengths).double()


def masked_mean(model: nn.Module, part: Any) -> Tensor:
    inputs, mask = part
    return (model(inputs).squeeze(-1).tanh().square() * mask).sum() / mask.sum()


def unmasked(part: Any) -> float:
    return part[1].sum().item()


@pytest.mark.parametrize("count", [16, 13, 1])
def test_accumulation_with_unequal_units_is_the_whole_batchs_gradient(count: int) -> None:
    model = nn.Linear(3, 1)
    batch = tokens(count)
    controller = controlled(BatchSizeSchedule.parse("0:16"), max_micro_batch_size=5)
    parts = list(controller.micro_batches(batch, units=unmasked))
    assert [len(part[1]) for part, _ in parts] == [4] * (count // 4) + [1] * (count % 4 > 0)
    masked_mean(model, batch).backward()
    expected = [
        parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None
    ]
    model.zero_grad()
    for part, weight in parts:
        (weight * masked_mean(model, part)).backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-15)


def gradient_of_ranks(rank: int) -> list[float]:
    model = DistributedDataParallel(linear())
    inputs, mask = tokens(11)
    share = (inputs[:7], mask[:7]) if rank == 0 else (inputs[7:], mask[7:])
    controller = controlled(BatchSizeSchedule.parse("0:16"), max_micro_batch_size=4)
    # Ranks with fewer micro-batches would leave the others waiting: one backward pass for all.
    loss = sum(
        weight * masked_mean(model.module, part)
        for part, weight in controller.micro_batches(share, units=unmasked)
    )
    anchored = loss + 0 * model(share[0]).sum()  # the wrapper wants its own forward pass
    anchored.backward()
    return [
        value
        for p in model.parameters()
        if p.grad is not None
        for value in p.grad.flatten().tolist()
    ]


def linear() -> nn.Linear:
    torch.manual_seed(5)
    return nn.Linear(3, 1)


@pytest.mark.slow
def test_two_ranks_with_unequal_units_have_the_gradient_of_their_union() -> None:
    model = linear()
    masked_mean(model, tokens(11)).backward()
    expected = [
        value
        for p in model.parameters()
        if p.grad is not None
        for value in p.grad.flatten().tolist()
    ]
    for gradient in on_two_ranks(gradient_of_ranks):
        assert gradient == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(("units", "total"), [(3, 2), (-1, 2), (0, 0), (1, math.nan)])
def test_units_that_cannot_be_are_refused(units: float, total: float) -> None:
    controller = controlled(BatchSizeSchedule.parse("0:8"))
    with pytest.raises(ValueError, match=rf"units={units!r} and total_units={total!r}"):
        controller.weight(units, total)


@given(st.integers(1, 3000), st.integers(1, 9), st.integers(1, 70))
def test_sizes_are_cut_exactly_or_the_nearest_that_can_be_are_named(
    size: int, devices: int, most: int
) -> None:
    try:
        steps = accumulation_for(size, devices, most)
    except ValueError as error:
        named = [int(word) for word in str(error).rsplit("take ", 1)[1].strip(".").split(" or ")]
        fewest = math.ceil(size / devices / most) if size % devices == 0 else 1
        assert named == list(nearest_valid(size, devices * fewest))
        assert size not in named
        if size % devices == 0:
            for other in named:
                assert other // devices // accumulation_for(other, devices, most) <= most
        return
    micro, left = divmod(size, steps * devices)
    assert left == 0
    assert 1 <= micro <= most
    assert steps <= 2 * math.ceil(size / devices / most)


@given(st.sampled_from([1, 2, 4]), st.integers(4, 40))
def test_batch_is_micro_batch_times_accumulation_times_devices(devices: int, most: int) -> None:
    schedule = BatchSizeSchedule.parse("0:16 32:48 96:240")
    controller = controlled(schedule, max_micro_batch_size=most, comm=ManyRanks(devices))
    for _ in range(4):
        product = controller.micro_batch_size * controller.accumulation_steps * devices
        assert product == controller.batch_size
        assert controller.micro_batch_size <= most
        controller.step(controller.batch_size // devices)
    assert controller.batch_size == 240
