"""Oracle: a run that is saved and resumed anywhere has the rates of one that is not, to the bit."""

import copy
import json
import random
from typing import Any

import pytest
import torch
from torch.optim import SGD, Optimizer

import rightbatch as rb
from rightbatch.lr import Cosine, Linear, Sequence, Warmup

SHAPE = Sequence(Warmup(640), Cosine(6400, end=0.1))


def optimizer_with(*rates: float) -> Optimizer:
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in rates]
    return SGD(groups, lr=1.0)


def rates_of(optimizer: Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def step(scheduler: rb.ExampleLR, examples: Any) -> None:
    scheduler.optimizer.step()
    scheduler.step(examples)


def join(optimizer: Optimizer, rate: float) -> None:
    group = {"params": [torch.zeros(1, requires_grad=True)], "lr": rate}
    optimizer.add_param_group(group)


@pytest.mark.parametrize("passes_scheduler", [True, False])
def test_saved_right_after_scaling_it_goes_on_to_the_bit(passes_scheduler: bool) -> None:
    draw = random.Random(0)
    for _ in range(100):
        first = [draw.uniform(0.01, 1.0) for _ in range(2)]
        scheduler = rb.ExampleLR(optimizer_with(*first), SHAPE)
        step(scheduler, draw.randrange(1, 5000))
        move: dict[str, Any] = {"scheduler": scheduler} if passes_scheduler else {}
        rb.scale_hyperparameters(scheduler.optimizer, 64, draw.randrange(1, 999), **move)
        resumed = rb.ExampleLR(optimizer_with(1.0, 1.0), SHAPE)
        resumed.load_state_dict(json.loads(json.dumps(scheduler.state_dict())))
        assert rates_of(resumed.optimizer) == rates_of(scheduler.optimizer)
        assert resumed.get_last_lr() == rates_of(scheduler.optimizer)
        step(scheduler, 100)
        step(resumed, 100)
        assert rates_of(resumed.optimizer) == rates_of(scheduler.optimizer)


def test_a_group_that_joins_counts_before_the_next_step() -> None:
    scheduler = rb.ExampleLR(optimizer_with(0.4), Linear(100))
    step(scheduler, 50)
    join(scheduler.optimizer, 0.8)
    assert scheduler.base_lrs == [0.4, 0.8]
    assert scheduler.get_lr() == [0.2, 0.4]
    saved = copy.deepcopy(scheduler.state_dict())
    assert saved["_last_lr"] == [0.2, 0.8]
    resumed = rb.ExampleLR(optimizer_with(1.0), Linear(100))
    join(resumed.optimizer, 1.0)
    resumed.load_state_dict(saved)
    for one in (scheduler, resumed):
        assert rates_of(one.optimizer) == [0.2, 0.8]
        step(one, 25)
        assert rates_of(one.optimizer) == [0.1, 0.2]


def test_a_group_that_joins_is_scaled_with_the_others() -> None:
    scheduler = rb.ExampleLR(optimizer_with(0.4), Linear(100))
    step(scheduler, 50)
    join(scheduler.optimizer, 0.8)
    scheduler.scale(2.0)
    assert scheduler.base_lrs == [0.8, 1.6]
    assert rates_of(scheduler.optimizer) == [0.4, 0.8]


def test_first_rates_in_one_tensor_are_scaled_once() -> None:
    rate = torch.tensor(0.4)
    optimizer = optimizer_with(1.0, 1.0)
    for group in optimizer.param_groups:
        group["initial_lr"] = rate
    scheduler = rb.ExampleLR(optimizer, Linear(100))
    scheduler.scale(2.0)
    assert rates_of(optimizer) == pytest.approx([0.8, 0.8])


def test_examples_may_be_counted_in_a_tensor() -> None:
    scheduler = rb.ExampleLR(optimizer_with(0.4), Linear(1000))
    step(scheduler, torch.tensor(64))
    step(scheduler, torch.tensor([36.0]))
    assert scheduler.examples_seen == 100
    scheduler.optimizer.step()
    for nothing in (torch.tensor(0), torch.tensor(True), torch.ones(2)):
        with pytest.raises(ValueError, match="`examples` must be positive and finite, got"):
            scheduler.step(nothing)  # pyright: ignore[reportArgumentType]
    assert scheduler.examples_seen == 100
