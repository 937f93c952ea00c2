"""A quadratic bowl whose best and largest stable rates are known, and a clock that losses move."""

from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch.task import Task

FLOOR = 1e-9  # keeps log(loss) finite once the bowl's bottom is reached


class Bowl(nn.Module):
    """Parameters w, one per curvature, starting at 1."""

    def __init__(self, curvatures: Sequence[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(len(curvatures)))


class TickingClock:
    """Time passes by ``tick_seconds`` whenever a loss is computed, and at no other time."""

    def __init__(self, tick_seconds: float = 0.01) -> None:
        self.now, self.calls, self.tick_seconds = 0.0, 0, tick_seconds

    def __call__(self) -> float:
        return self.now

    def tick(self) -> None:
        self.calls += 1
        self.now += self.tick_seconds


def bowl(
    *curvatures: float,
    lr: float = 0.1,
    clock: TickingClock | None = None,
    examples: int = 40,
    batch_size: int = 4,
    **options: Any,
) -> Task:
    """Make gradient descent on sum(curvature * w^2) / 2, whatever the examples are.

    It converges for rates below 2 / max(curvatures). One curvature is best trained at its inverse.
    """
    stiffness = torch.tensor(curvatures)
    # An iterator goes on; what else a loss refers to is put back, and with it the time.
    ticks = repeat(None) if clock is None else iter(clock.tick, 0)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        next(ticks)
        return 0.5 * (stiffness * model.weight.square()).sum() + FLOOR  # type: ignore[operator]

    model = Bowl(curvatures)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return Task(model, optimizer, numbers(examples), loss, batch_size=batch_size, **options)


def numbers(count: int) -> list[Tensor]:
    """Return examples that can be told apart: 0.0, 1.0, 2.0, ..."""
    return [torch.tensor([float(index)]) for index in range(count)]


class LoggingSGD(torch.optim.SGD):
    """Says at every step with which rates it was taken."""

    on_step: Callable[[list[float]], None] = staticmethod(lambda rates: None)

    def step(self, closure: Any = None) -> Any:
        self.on_step([float(group["lr"]) for group in self.param_groups])
        return super().step(closure)
