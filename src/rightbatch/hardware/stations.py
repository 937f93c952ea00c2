"""One batch size under the stopwatch: a batch that stays on the device, and its samples."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from rightbatch._time import Clock
from rightbatch.hardware.step_time import QUANTILE
from rightbatch.hardware.workload import batches_in_process, synchronize
from rightbatch.task import Task

_WARM_UP_STEPS = 3  # the first step at a size costs up to 13 times the steady one
_FIRST_WARM_UP_STEPS = 20  # the first size of all also wakes up threads and clocks
_CALIBRATION_STEPS = 3
_QUICK_SHARE = 0.01  # of the budget; slower steps are not repeated before the rounds
_LOADING_SHARE = 0.25  # of a window
_MOST_STEPS, _MOST_LOADS = 1000, 20  # in a window
_OVERRUN = 2  # times what a window was planned to take; then it ends with the steps it has


@final
@dataclass(slots=True)
class Station:
    """A batch size, its batches, and what was seen of it so far."""

    batch_size: int
    stream: Iterator[Any]
    batch: Any
    step_seconds: float  # first estimate; the rounds give the samples
    load_seconds: float
    steps_per_window: int = 1
    loads_per_window: int = 1
    step_samples: list[float] = field(default_factory=list)
    load_samples: list[float] = field(default_factory=list)

    @property
    def window_seconds(self) -> float:
        """What a window is expected to take."""
        stepping = self.steps_per_window * self.step_seconds
        return stepping + self.loads_per_window * self.load_seconds

    def plan_window(self, seconds: float) -> None:
        """Choose how many batches to load and steps to take in about these seconds."""
        loading = _LOADING_SHARE * seconds
        self.loads_per_window = _count(loading, self.load_seconds, _MOST_LOADS)
        self.steps_per_window = _count(seconds - loading, self.step_seconds, _MOST_STEPS)


def _count(seconds: float, each: float, most: int) -> int:
    return most if each * most <= seconds else max(1, int(seconds / each))


@final
class Stopwatch:
    """Times loading and computing of one task apart, on an injected clock."""

    def __init__(self, task: Task, clock: Clock, *, budget_seconds: float, seed: int) -> None:
        self._task, self._clock, self._seed = task, clock, seed
        self._quick_seconds = _QUICK_SHARE * budget_seconds
        self._is_first = True

    def open(self, batch_size: int) -> Station:
        """Load a batch, warm up, and estimate what loading and a step take.

        A slow step is taken twice at most: it is its own estimate, and the rounds refine it.
        """
        stream = batches_in_process(self._task, batch_size, seed=self._seed)
        loading, batch = self._load(stream, 1)
        if loading < self._quick_seconds:  # the first batch also paid for making the loader
            loading, batch = self._load(stream, 1)
        warm_up = _FIRST_WARM_UP_STEPS if self._is_first else _WARM_UP_STEPS
        self._is_first = False
        stepping = self._step(batch, 1)
        spent = stepping
        for _ in range(warm_up - 1):
            if stepping > self._quick_seconds or spent > 2 * self._quick_seconds:
                break
            stepping = self._step(batch, 1)
            spent += stepping
        timed = _CALIBRATION_STEPS if stepping <= self._quick_seconds else 1
        stepping = min([stepping, *(self._step(batch, 1) for _ in range(timed))])
        return Station(batch_size, stream, batch, stepping, loading)

    def window(self, station: Station) -> None:
        """Take one sample of both times; a device is waited for before and after only."""
        limit = _OVERRUN * station.window_seconds
        count = station.loads_per_window
        station.load_samples.append(self._load(station.stream, count, limit)[0])
        count = station.steps_per_window
        station.step_samples.append(self._step(station.batch, count, limit))

    def _load(
        self, stream: Iterator[Any], count: int, limit: float = math.inf
    ) -> tuple[float, Any]:
        """Load a few batches; return the seconds for each, and the last one."""
        synchronize(self._task.device)
        times, batch = [self._clock()], None
        while len(times) <= count and (len(times) == 1 or times[-1] - times[0] < limit):
            batch = next(stream)
            synchronize(self._task.device)
            times.append(self._clock())
        return _low_difference(times), batch

    def _step(self, batch: Any, count: int, limit: float = math.inf) -> float:
        """Take a few steps; return the seconds for each.

        On a CPU every step has an end of its own, and the 20 % quantile over them passes by
        those that another process disturbed. A device would have to be waited for after each.
        """
        synchronize(self._task.device)
        times = [self._clock()]
        while len(times) <= count and (len(times) == 1 or times[-1] - times[0] < limit):
            self._task.step(batch)
            times.append(self._clock())
        synchronize(self._task.device)
        if self._task.device.type == "cpu":
            return _low_difference(times)
        return (self._clock() - times[0]) / (len(times) - 1)


def _low_difference(times: list[float]) -> float:
    return float(np.quantile(np.diff(times), QUANTILE))
