"""Oracles: what a scheduler of torch does to a scaled optimizer at its next steps."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer, lr_scheduler
from torch.optim.swa_utils import SWALR

import rightbatch as rb
from rightbatch.scaling import Validity


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(1))]


def highest(optimizer: Optimizer, scheduler: Any, num_steps: int = 99) -> float:
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(num_steps):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return max(rates)


def one_cycle(optimizer: Optimizer) -> Any:
    return lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=100, cycle_momentum=False)


def cyclic(optimizer: Optimizer) -> Any:
    return lr_scheduler.CyclicLR(optimizer, 0.01, 0.1, 20, cycle_momentum=False)


@pytest.mark.parametrize("make", [one_cycle, cyclic])
@pytest.mark.parametrize(
    ("options", "peak"),
    [
        ({"learning_rate": 0.3}, 0.3),
        ({"learning_rate": 0.3, "edge": 0.2}, 0.2),
        ({"rule": "linear", "edge": 0.2}, 0.2),
        ({"rule": "linear", "edge": 0.5}, 0.4),
    ],
)
def test_a_given_rate_and_an_edge_are_the_highest_of_a_cycle(
    make: Any, options: dict[str, Any], peak: float
) -> None:
    optimizer = SGD(parameters(), lr=0.01)
    scheduler = make(optimizer)
    rb.scale_hyperparameters(optimizer, 64, 256, scheduler=scheduler, **options)
    assert highest(optimizer, scheduler) == pytest.approx(peak, rel=1e-12)


@pytest.mark.parametrize("make", [one_cycle, cyclic])
def test_there_and_back_over_an_edge_restores_a_cycle(make: Any) -> None:
    optimizer = SGD(parameters(), lr=0.01)
    scheduler = make(optimizer)
    move: dict[str, Any] = {"rule": "linear", "edge": 0.2, "scheduler": scheduler}
    rb.scale_hyperparameters(optimizer, 64, 256, **move)
    rb.scale_hyperparameters(optimizer, 256, 64, **move)
    assert highest(optimizer, scheduler) == pytest.approx(0.1, rel=1e-12)


def test_a_cycle_inside_a_sequence_counts_too() -> None:
    optimizer = SGD(parameters(), lr=0.01)
    parts = [lr_scheduler.ConstantLR(optimizer, 1.0), cyclic(optimizer)]
    scheduler = lr_scheduler.SequentialLR(optimizer, parts, [5])
    rb.scale_hyperparameters(optimizer, 64, 256, learning_rate=0.3, scheduler=scheduler)
    assert highest(optimizer, scheduler) == pytest.approx(0.3, rel=1e-12)


@pytest.mark.parametrize("make", [lr_scheduler.OneCycleLR, lr_scheduler.CyclicLR])
def test_a_cycled_momentum_is_said_to_come_back(make: Any) -> None:
    optimizer = AdamW(parameters(), lr=0.01)
    if make is lr_scheduler.OneCycleLR:
        scheduler = make(optimizer, 0.1, total_steps=100)
    else:
        scheduler = make(optimizer, 0.01, 0.1)
    before = optimizer.param_groups[0]["betas"][0]
    options: dict[str, Any] = {"scheduler": scheduler, "noise_scale": 1e4}
    report = rb.scale_hyperparameters(optimizer, 64, 128, **options)
    row = next(change for change in report.changes if change.parameter == "beta1")
    assert row.after == pytest.approx(before**2)
    assert row.validity is Validity.OUTSIDE
    assert "cycles beta1 and puts its own back" in report.warnings[-1]
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["betas"][0] == pytest.approx(before, abs=0.02)


def test_a_momentum_that_is_kept_is_not_warned_of() -> None:
    optimizer = SGD(parameters(), lr=0.01, momentum=0.9)
    scheduler = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=100)
    report = rb.scale_hyperparameters(optimizer, 64, 128, scheduler=scheduler, noise_scale=1e4)
    assert report.valid
    report = rb.scale_hyperparameters(
        optimizer, 128, 256, scheduler=scheduler, noise_scale=1e4, momentum="examples"
    )
    assert "cycles momentum" in report.warnings[-1]
    assert not report.valid


class Wrapper:
    """As wrappers for several devices are: it holds the scheduler, and is none."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler


def test_a_wrapped_scheduler_and_several_are_found() -> None:
    optimizer = SGD(parameters(), lr=0.1)
    steps = lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    plateau = lr_scheduler.ReduceLROnPlateau(optimizer, min_lr=0.001)
    report = rb.scale_hyperparameters(
        optimizer, 64, 128, rule="linear", scheduler=[Wrapper(steps), plateau]
    )
    assert not any("Pass `scheduler`" in warning for warning in report.warnings)
    assert steps.base_lrs == [0.2]
    assert plateau.min_lrs == [0.002]


def test_the_rate_of_a_weight_average_moves_too() -> None:
    optimizer = SGD(parameters(), lr=0.1)
    scheduler = SWALR(optimizer, swa_lr=0.05, anneal_epochs=1)
    rb.scale_hyperparameters(optimizer, 64, 256, rule="linear", scheduler=scheduler)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2)


def test_a_scheduler_of_another_optimizer_is_refused() -> None:
    optimizer, other = SGD(parameters(), lr=0.1), SGD(parameters(), lr=0.1)
    scheduler = lr_scheduler.StepLR(other, 1)
    for given in (scheduler, Wrapper(scheduler), [scheduler]):
        with pytest.raises(ValueError, match="must drive this optimizer, got one of another SGD"):
            rb.scale_hyperparameters(optimizer, 64, 128, scheduler=given)
    assert (optimizer.param_groups[0]["lr"], scheduler.base_lrs) == (0.1, [0.1])


@pytest.mark.parametrize("given", ["cosine", 3, object(), Wrapper(3), {"scheduler": None}])
def test_what_is_no_scheduler_is_refused(given: Any) -> None:
    optimizer = SGD(parameters(), lr=0.1)
    with pytest.raises(TypeError, match=f"must be of torch.*got {type(given).__name__}"):
        rb.scale_hyperparameters(optimizer, 64, 128, scheduler=given)
    assert optimizer.param_groups[0]["lr"] == 0.1
