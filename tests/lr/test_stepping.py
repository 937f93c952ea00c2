"""Oracles: plain arithmetic on rates; random draws compared with themselves."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from rightbatch._time import Deadline
from rightbatch.lr.stepping import (
    evaluate_loss,
    measure_pace,
    rate_setter,
    seed_everything,
    take_step,
)
from rightbatch.task import Task
from tests.laws import assert_same_world, snapshot
from tests.lr.doubles import Bowl, TickingClock, bowl, numbers


def test_a_rate_that_is_a_tensor_is_written_in_place() -> None:
    """A compiled or captured step goes on reading the tensor that it was built with."""
    weight, rate = torch.nn.Parameter(torch.ones(1)), torch.tensor(0.1)
    optimizer = torch.optim.SGD([weight], lr=rate)
    rate_setter(optimizer)(0.7)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == 0.7


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.rand(3).tolist(),
        lambda: np.random.rand(3).tolist(),
        lambda: [random.random()],
    ],
    ids=["torch", "numpy", "python"],
)
def test_a_seed_fixes_every_random_source(draw: Callable[[], list[float]]) -> None:
    draws = []
    for seed in (1, 1, 2, 2**62):
        seed_everything(seed)
        draws.append(draw())
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_a_seed_fixes_accelerators_that_are_in_use(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, seeds = getattr(torch, kind), list[int]()
    monkeypatch.setattr(module, "manual_seed_all", seeds.append)
    seed_everything(3)
    assert not seeds
    monkeypatch.setattr(module, "is_initialized", lambda: True)
    seed_everything(4)
    assert seeds == [4]


def raising_task(weight: float) -> Task:
    model = Bowl([1.0])
    with torch.no_grad():
        model.weight.fill_(weight)

    def loss(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        raise ValueError("the loss refuses this")

    return Task(model, torch.optim.SGD(model.parameters(), lr=1.0), numbers(8), loss, batch_size=2)


@pytest.mark.parametrize("work", [take_step, evaluate_loss])
def test_errors_count_as_divergence_only_where_the_weights_are_not_finite(
    work: Callable[..., float],
) -> None:
    for weight in (float("nan"), float("inf")):
        assert np.isnan(work(raising_task(weight), numbers(2)))
    with pytest.raises(ValueError, match="the loss refuses this"):
        work(raising_task(1.0), numbers(2))


def test_interrupts_are_never_taken_for_divergence() -> None:
    task = raising_task(float("nan"))

    def interrupted(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt("Ctrl-C")

    task._loss = interrupted
    with pytest.raises(KeyboardInterrupt, match="Ctrl-C"):
        take_step(task, numbers(2))


def test_the_pace_is_that_of_the_clock() -> None:
    clock = TickingClock(0.25)
    task = bowl(1.0, clock=clock)
    before = snapshot(task)
    pace = measure_pace(task, 4, learning_rate=0.1, seed=0, deadline=Deadline(100.0, clock))
    assert (pace.start, pace.load, pace.step, pace.forward) == (0.0, 0.0, 0.25, 0.25)
    assert pace.loaded_step == 0.25
    assert_same_world(before, snapshot(task))


def test_the_pace_is_taken_in_one_step_where_there_is_no_time_for_more() -> None:
    clock = TickingClock(5.0)
    measure_pace(
        bowl(1.0, clock=clock), 4, learning_rate=0.1, seed=0, deadline=Deadline(1.0, clock)
    )
    assert clock.calls == 2
