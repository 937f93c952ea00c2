"""Tasks whose time, memory and failures are chosen, for tests of the hardware instruments."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from rightbatch.task import Task
from rightbatch.testing import FakeClock

Effect = Callable[[int], None]  # of a step on so many examples


class Mean(nn.Module):
    """One parameter; cheap, and nothing to warm up."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        return (self.theta - inputs).square().mean()


class TimedExamples(Dataset[Tensor]):
    """Examples that take a while to load, on a fake clock."""

    def __init__(self, count: int, clock: FakeClock, seconds: float) -> None:
        self._count, self._clock, self._seconds = count, clock, seconds

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Tensor:
        self._clock.advance(self._seconds)
        return torch.tensor(float(index % 7))


def task_with(
    effect: Effect, *, dataset: Any = None, model: nn.Module | None = None, **options: Any
) -> Task:
    """A task whose every loss has an effect besides, from now on: its preflight is over."""
    model = model or Mean()

    class Armed:  # a class, since what the loss itself refers to is put back after measuring
        effects: ClassVar[list[Effect]] = []

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        for act in Armed.effects:
            act(len(batch))
        return model(batch).mean()

    dataset = torch.arange(64.0) if dataset is None else dataset
    task = Task(
        model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), dataset, loss, **options
    )
    task.check()
    Armed.effects.append(effect)
    return task


def timed_task(
    clock: FakeClock,
    *,
    alpha: float,
    beta: float,
    load: float = 0.0,
    examples: int = 4096,
    **options: Any,
) -> Task:
    """A task whose step takes ``alpha + beta * examples`` seconds of a fake clock."""
    return task_with(
        lambda size: clock.advance(alpha + beta * size),
        dataset=TimedExamples(examples, clock, load),
        **options,
    )


def failing_above(limit: int, error: Exception, **options: Any) -> Task:
    """A task whose step fails on more examples than ``limit``."""

    def fail(size: int) -> None:
        if size > limit:
            raise error

    return task_with(fail, **options)


class Hungry(nn.Module):
    """Holds about ``2 * bytes_per_example`` for backward."""

    def __init__(self, bytes_per_example: int) -> None:
        super().__init__()
        self._width = bytes_per_example // 8
        self.theta = nn.Parameter(torch.ones(()))

    def forward(self, inputs: Tensor) -> Tensor:
        wide = self.theta * inputs[:, None].expand(-1, self._width).contiguous()
        return wide.square().mean()
