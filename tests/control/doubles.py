"""Stand-ins for what a controller drives: a monitor, ranks, an optimizer of one weight."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from rightbatch import BatchSizeController, BatchSizeSchedule


def weights_and_optimizer(lr: float = 0.1, **options: Any) -> tuple[Tensor, torch.optim.SGD]:
    weight = torch.zeros(1, requires_grad=True)
    return weight, torch.optim.SGD([weight], lr=lr, **options)


def controlled(schedule: BatchSizeSchedule, **options: Any) -> BatchSizeController:
    return BatchSizeController(weights_and_optimizer()[1], schedule, **options)


def rate(optimizer: torch.optim.Optimizer) -> float:
    return float(optimizer.param_groups[0]["lr"])


@dataclass
class Averages:
    """Of a monitor: how much it has measured."""

    measured: int = 0


@dataclass
class FakeMonitor:
    """Measures what a test says; counts how often its result was asked for."""

    noise_scale: float | None = None
    averages: Averages = field(default_factory=Averages)
    asked: int = 0

    def measures(self, noise_scale: float | None) -> None:
        self.noise_scale = noise_scale
        self.averages.measured += 1

    def result(self) -> Any:
        self.asked += 1
        noise = self.noise_scale
        low, high = (0.0, None) if noise is None else (0.9 * noise, 1.1 * noise)
        return SimpleNamespace(noise_scale=noise, low=low, high=high)


@dataclass
class ManyRanks:
    """A world in which every rank holds what this one does."""

    world_size: int
    rank: int = 0

    def sum(self, values: Tensor) -> Tensor:
        return values * self.world_size

    def average_(self, values: Tensor) -> None:
        """Leave the values: all ranks hold the same."""
