"""Time as an argument: a clock that tests can replace, a deadline, and progress reports."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

import torch

Clock = Callable[[], float]  # monotonic seconds
Progress = Callable[[float, str], None]  # fraction done in [0, 1], what is being done

wall_clock: Clock = time.perf_counter


def no_progress(fraction: float, note: str) -> None:
    """Report to nobody."""


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was given: only then does a clock tell what it took."""
    if device.type == "mps":
        torch.mps.synchronize()  # torch 2.6's general function returns at once there
    elif device.type != "cpu":
        torch.accelerator.synchronize(device)


@final
@dataclass(frozen=True, slots=True)
class Deadline:
    """A time budget that began when this object was made.

    Example:
        >>> deadline = Deadline(10.0, clock=lambda: 0.0)
        >>> deadline.remaining_seconds(), deadline.passed()
        (10.0, False)
    """

    seconds: float
    clock: Clock = wall_clock
    _start: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_start", self.clock())

    def elapsed_seconds(self) -> float:
        """Seconds since the beginning."""
        return self.clock() - self._start

    def remaining_seconds(self) -> float:
        """Seconds left; negative once the budget is overspent."""
        return self.seconds - self.elapsed_seconds()

    def passed(self) -> bool:
        """Whether the budget is spent."""
        return self.remaining_seconds() <= 0

    def fraction(self) -> float:
        """Share of the budget that is spent, at most 1."""
        return min(1.0, self.elapsed_seconds() / self.seconds) if self.seconds > 0 else 1.0
