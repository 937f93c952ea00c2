"""What the monitor measured, the same on every rank."""

from dataclasses import dataclass
from typing import Protocol, final

import torch

from rightbatch._comm import Comm
from rightbatch.batches.hysteresis import Noise


class Averages(Protocol):
    """What is asked of a monitor's averages."""

    @property
    def measured(self) -> int:
        """Steps that went into them."""
        ...


class Monitor(Protocol):
    """What is asked of a monitor; `rightbatch.NoiseMonitor` has it."""

    @property
    def averages(self) -> Averages:
        """What was measured so far."""
        ...

    def result(self) -> Noise:
        """Return the noise scale as measured so far."""
        ...


@final
@dataclass(frozen=True, slots=True)
class Agreed:
    """A resolved noise scale that all ranks know."""

    noise_scale: float  # in examples
    low: float
    high: float | None  # None: not bounded


@final
class Evidence:
    """Ask a monitor for its noise scale, and have all ranks hear what rank 0 measured.

    Ranks that measure for themselves differ, and would move apart.

    Args:
        monitor: ``None``: nothing is measured.
        comm: The ranks.
    """

    def __init__(self, monitor: Monitor | None, comm: Comm) -> None:
        self._monitor, self._comm = monitor, comm
        self._known: Agreed | None = None  # by this rank
        self._measured = 0  # steps that it rests on

    def noise(self) -> Agreed | None:
        """Return rank 0's noise scale; every rank must call it, and gets the same.

        Returns:
            ``None`` where there is no monitor, or it has not resolved one.
        """
        if self._monitor is None:
            return None
        if self._comm.rank == 0:
            measured = self._monitor.averages.measured
            if measured != self._measured:  # the result costs more than a step of the controller
                self._known, self._measured = _result(self._monitor), measured
        return self._known if self._comm.world_size == 1 else self._heard(self._known)

    def _heard(self, own: Agreed | None) -> Agreed | None:
        numbers = [0.0] * 5
        if own is not None:
            numbers = [1.0, own.noise_scale, own.low, float(own.high is not None), own.high or 0.0]
        agreed = self._comm.sum(torch.tensor(numbers, dtype=torch.float64)).tolist()
        is_resolved, noise_scale, low, is_bounded, high = agreed
        return Agreed(noise_scale, low, high if is_bounded else None) if is_resolved else None


def _result(monitor: Monitor) -> Agreed | None:
    noise = monitor.result()
    scale = noise.noise_scale
    return None if scale is None else Agreed(scale, noise.low, noise.high)
