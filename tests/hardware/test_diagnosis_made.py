"""Five tasks made to have one bottleneck each, idle or beside others. Oracle: how they were made.

Nothing here depends on how fast the machine is: only what an act is said to cost moves the clock.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any, final

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from rightbatch.hardware import measure_throughput
from rightbatch.hardware.processor import Processor
from rightbatch.task import Task
from rightbatch.testing import FakeClock

SLOWED = 0.5  # by neighbours, at most
TURN_SECONDS = 0.03  # that another process keeps a processor, at most


@final
class Machine:
    """A processor on a fake clock. Beside others acts are slowed down, and stand in line.

    Args:
        crowd: Chance that an act stands in line; 0: no other process is there.
        seed: Of what the others do.
    """

    def __init__(self, crowd: float, seed: int) -> None:
        self.clock, self._random = FakeClock(), Random(seed)
        self._crowd, self._ran, self._line = crowd, 0.0, 0.0

    def compute(self, seconds: float) -> None:
        """Need a processor for so long, if no neighbour slows it down."""
        if self._crowd:
            seconds *= 1 + SLOWED * self._random.random()
        self.clock.advance(seconds)
        self._ran += seconds
        if self._random.random() < self._crowd:
            turn = TURN_SECONDS * self._random.random()
            self.clock.advance(turn)
            self._line += turn

    def wait(self, seconds: float) -> None:
        """Need none."""
        self.clock.advance(seconds)

    @contextmanager
    def beside(self, clock: Callable[[], float]) -> Iterator[Processor]:
        assert clock is self.clock
        yield Processor(lambda: (self._ran, self._line), lambda: self._line)


@final
class Examples(Dataset[Tensor]):
    """Of chosen lengths, each of which costs something to load."""

    def __init__(self, length: Callable[[int], int], load: Callable[[], None]) -> None:
        self._length, self._load = length, load

    def __len__(self) -> int:
        return 2048

    def __getitem__(self, index: int) -> Tensor:
        self._load()
        return torch.ones(self._length(index), 1)


def made(
    step: Callable[[Tensor], None],
    *,
    load: Callable[[], None] = lambda: None,
    length: Callable[[int], int] = lambda index: 1,
) -> Task:
    model = nn.Linear(1, 1)

    def collate(examples: list[Tensor]) -> Tensor:
        return nn.utils.rnn.pad_sequence(examples, batch_first=True)

    def units(batch: Tensor) -> float:
        return batch[..., 0].sum().item()

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        step(batch)
        return model(batch).square().sum() / units(batch)

    return Task(
        model,
        torch.optim.SGD(model.parameters(), lr=0.01),
        Examples(length, load),
        loss,
        collate_fn=collate,
        weight=units,
    )


def slow_loader(machine: Machine) -> Task:
    """A disk that takes 2 ms an example; a step takes 5 ms."""
    return made(lambda batch: machine.compute(0.005), load=lambda: machine.wait(0.002))


def tiny_model(machine: Machine) -> Task:
    """Five milliseconds of launching, a microsecond an example."""
    return made(lambda batch: machine.compute(0.005 + 1e-6 * len(batch)))


def large_model(machine: Machine) -> Task:
    """A millisecond of launching, another one an example."""
    return made(lambda batch: machine.compute(0.001 + 0.001 * len(batch)))


def padded(machine: Machine) -> Task:
    """One in eight is a hundred times as long; 20 microseconds an element, padding or not."""
    return made(
        lambda batch: machine.compute(0.001 + 2e-5 * batch.numel()),
        length=lambda index: 400 if index % 8 == 0 else 4,
    )


def lock_step(machine: Machine) -> Task:
    """A millisecond of work, then another rank is waited for."""

    def step(batch: Tensor) -> None:
        machine.compute(0.001)
        machine.wait(0.03)

    return made(step)


MADE: dict[str, tuple[Any, list[int], str, str]] = {
    "slow loader": (slow_loader, [4, 16], "loading", "No batch size helps"),
    "tiny model": (tiny_model, [4, 64], "overhead", "larger batch"),
    "large model": (large_model, [4, 16, 64], "compute", "more devices"),
    "padding-bound": (padded, [1, 4, 32], "padding", "similar length"),
    "lock-step": (lock_step, [4, 64], "sync", "a slower rank"),
}


@pytest.mark.parametrize(
    ("crowd", "seed"), [(0.0, 0), *((crowd, seed) for crowd in (0.3, 0.9) for seed in (0, 1))]
)
@pytest.mark.parametrize(("make", "sizes", "name", "advice"), MADE.values(), ids=MADE)
def test_the_bottleneck_of_a_made_task_is_named_whatever_runs_beside(
    make: Callable[[Machine], Task],
    sizes: list[int],
    name: str,
    advice: str,
    crowd: float,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(crowd, seed)
    monkeypatch.setattr("rightbatch.hardware.throughput.processor_beside", machine.beside)
    profile = measure_throughput(
        make(machine), sizes, time_budget_seconds=15.0, clock=machine.clock
    )
    assert profile.bottleneck == name, profile
    assert advice in profile.advice
    assert profile.clocks is not None
    assert profile.shares is not None


@pytest.mark.parametrize("crowd", [0.3, 0.9])
def test_what_stood_in_line_is_not_in_the_step_times(
    crowd: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turns of 15 ms beside steps of 5: they are gone; of what caches cost a little stays."""
    machine = Machine(crowd, 0)
    monkeypatch.setattr("rightbatch.hardware.throughput.processor_beside", machine.beside)
    profile = measure_throughput(
        large_model(machine), [4, 16, 64], time_budget_seconds=30.0, clock=machine.clock
    )
    for point in profile.points:
        undisturbed = 0.001 + 0.001 * point.batch_size
        assert undisturbed <= point.step_seconds <= 1.2 * undisturbed
    assert profile.points[0].crowded_share is not None
    assert profile.points[0].crowded_share > 0.1
