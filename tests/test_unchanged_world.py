"""The first promise, for every instrument: nothing is changed behind the user's back.

Every instrument meets the whole zoo, runs through, and is interrupted half-way by an error and
by Ctrl-C; after each, every bit of the world must be as it was.
"""

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import TensorDataset

import rightbatch as rb
from rightbatch.errors import TaskError
from rightbatch.task import Task
from tests.clocks import TickingClock
from tests.laws import assert_same_world, assert_world_unchanged, snapshot
from tests.zoo import REFUSED, WORKING, Specimen


def noise(task: Task) -> Any:
    return rb.measure_noise(task, micro_batch_size=1, max_examples=12)


def track(task: Task) -> Any:
    return rb.track_noise(task, steps=2, probes=2, micro_batch_size=1, max_examples=12)


def memory(task: Task) -> Any:
    return rb.measure_memory(task, isolate=False, time_budget_seconds=0.3, clock=TickingClock())


def throughput(task: Task) -> Any:
    return rb.measure_throughput(task, time_budget_seconds=0.2, clock=TickingClock())


def range_test(task: Task) -> Any:
    return rb.range_test(task, steps=12, repeats=2)


def race(task: Task) -> Any:
    return rb.race(task, rates=[0.01, 0.02], time_budget_seconds=0.1, clock=TickingClock())


def find(task: Task) -> Any:
    return rb.find(task, time_budget_seconds=0.5, clock=TickingClock())


INSTRUMENTS: dict[str, Callable[[Task], Any]] = {
    function.__name__: function
    for function in (noise, track, memory, throughput, range_test, race, find)
}


# What is too little for an instrument is refused by name, and changes nothing either.
TOO_LITTLE = {
    ("two_examples", "noise"): "at least three micro-batches, got 2",
    ("two_examples", "track"): "at least three micro-batches, got 2",
}

# `find` runs the others in turn, so a few specimens tell whether it does so in a preserved world.
PAIRS = [
    pytest.param(specimen, name, id=f"{specimen}-{name}")
    for i, specimen in enumerate(WORKING)
    for name in INSTRUMENTS
    if name != "find" or i % 8 == 0
]


@pytest.mark.slow
@pytest.mark.parametrize(("specimen", "instrument"), PAIRS)
def test_nothing_changes(specimen: Specimen, instrument: str) -> None:
    task = specimen.make()
    for batch in task.batches(2, epochs=1):
        if task.max_batch_size is None or task.max_batch_size > 2:
            task.step(batch)  # an optimizer with state, parameters with gradients
        break
    refusal = TOO_LITTLE.get((specimen.name, instrument))
    if refusal is None:
        assert_world_unchanged(task, lambda: INSTRUMENTS[instrument](task))
    else:
        before = snapshot(task)
        with pytest.raises(TaskError, match=refusal):
            INSTRUMENTS[instrument](task)
        assert_same_world(before, snapshot(task))


class Centred(nn.Module):
    """A criterion that keeps a running mean, in place and by assignment, and the last losses."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(1))
        self.scale, self.losses = torch.ones(1), deque(maxlen=2)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        self.centre.lerp_(output.detach().mean(0), 0.1)
        self.scale = 0.9 * self.scale + 0.1 * output.detach().square().mean()
        loss = ((output - target).square() + 0.01 * output * self.centre * self.scale).mean()
        self.losses.append(loss.detach())
        return loss


@pytest.mark.parametrize("instrument", ["noise", "memory", "throughput", "race"])
def test_nothing_changes_that_hooks_and_the_loss_keep(instrument: str) -> None:
    model, criterion = nn.Linear(3, 1), Centred()
    rows = TensorDataset(torch.randn(24, 3), torch.randn(24, 1))
    task = Task(model, torch.optim.SGD(model.parameters(), lr=0.01), rows, rb.supervised(criterion))
    average = AveragedModel(model)
    task.optimizer.register_step_post_hook(lambda *_: average.update_parameters(model))
    for batch in islice(task.batches(4), 2):
        task.step(batch)
    held = {**criterion.state_dict(keep_vars=True), **average.state_dict(keep_vars=True)}
    held |= {"scale": criterion.scale, "first": criterion.losses[0], "last": criterion.losses[1]}
    before = {name: tensor.tolist() for name, tensor in held.items()}
    INSTRUMENTS[instrument](task)
    assert {name: tensor.tolist() for name, tensor in held.items()} == before
    assert criterion.scale is held["scale"]
    assert list(map(id, criterion.losses)) == [id(held["first"]), id(held["last"])]
    assert average.n_averaged.item() == 2


@pytest.mark.parametrize("instrument", INSTRUMENTS)
@pytest.mark.parametrize("specimen", REFUSED, ids=str)
def test_what_cannot_be_measured_is_refused_by_name(specimen: Specimen, instrument: str) -> None:
    assert specimen.error is not None
    with pytest.raises(specimen.error, match=specimen.match):
        INSTRUMENTS[instrument](specimen.make())
