"""One batch size under the stopwatch: a batch that stays on the device, and its samples."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from torch import Tensor

from rightbatch._time import Clock, synchronize
from rightbatch.hardware.processor import (
    Processor,
    Reading,
    Stretch,
    stretch_between,
    time_each,
)
from rightbatch.hardware.step_time import QUANTILE
from rightbatch.hardware.workload import batches_in_process
from rightbatch.task import Task

_WARM_UP_STEPS = 3  # the first step at a size costs up to 13 times the steady one
_FIRST_WARM_UP_STEPS = 20  # the first size of all also wakes up threads and clocks
_CALIBRATION_STEPS = 3
_QUICK_SHARE = 0.01  # of the budget; slower steps are not repeated before the rounds
_LOADING_SHARE = 0.25  # of a window
_MOST_STEPS, _MOST_LOADS = 1000, 20  # in a window
_TYPICAL_OF = 5
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
    stretches: list[Stretch] = field(default_factory=list)  # of steps
    fill_samples: list[tuple[float, int]] = field(default_factory=list)  # units, elements

    @property
    def window_seconds(self) -> float:
        """What a window is expected to take."""
        stepping = self.steps_per_window * self.step_seconds
        return stepping + self.loads_per_window * self.load_seconds

    @property
    def idle_share(self) -> float | None:
        """Share of a step in which nothing ran; ``None``: not seen."""
        shares = [stretch.idle_share for stretch in self.stretches]
        return float(np.quantile(shares, QUANTILE)) if shares else None

    @property
    def crowded_share(self) -> float | None:
        """Share of the time that threads wanted to run and had no processor; ``None``: not seen."""
        shares = [stretch.crowded_share for stretch in self.stretches]
        return float(np.median(shares)) if shares else None

    @property
    def paging_share(self) -> float | None:
        """Share of what threads ran that went into pages of memory; ``None``: not known."""
        shares = [share for s in self.stretches if (share := s.paging_share) is not None]
        return float(np.median(shares)) if shares else None

    @property
    def units(self) -> float | None:
        """Mean weight of a batch; ``None``: not seen."""
        return (
            float(np.mean([units for units, _ in self.fill_samples], dtype=float))
            if self.fill_samples
            else None
        )

    @property
    def elements(self) -> float | None:
        """Mean number of elements of a batch's tensors; ``None``: not seen."""
        return (
            float(np.mean([count for _, count in self.fill_samples], dtype=float))
            if self.fill_samples
            else None
        )

    def plan_window(self, seconds: float) -> None:
        """Choose how many batches to load and steps to take in about these seconds."""
        loading = _LOADING_SHARE * seconds
        self.loads_per_window = _count(loading, self.load_seconds, _MOST_LOADS)
        self.steps_per_window = _count(seconds - loading, self.step_seconds, _MOST_STEPS)


def _count(seconds: float, each: float, most: int) -> int:
    return most if each * most <= seconds else max(1, int(seconds / each))


@final
class Stopwatch:
    """Times loading and computing of one task apart, on an injected clock.

    Args:
        task: What is timed.
        clock: Monotonic seconds.
        processor: What its threads did meanwhile, if it can be told: `processor_beside`.
        budget_seconds: Of the whole measurement.
        seed: Of the shuffle.
    """

    def __init__(
        self,
        task: Task,
        clock: Clock,
        *,
        processor: Processor | None = None,
        budget_seconds: float,
        seed: int,
    ) -> None:
        self._task, self._clock, self._seed = task, clock, seed
        # While a device works the process may well sleep: nothing follows from that.
        self._processor = processor if task.device.type == "cpu" else None
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
            batch = self._typical(stream, batch, loading)
        warm_up = _FIRST_WARM_UP_STEPS if self._is_first else _WARM_UP_STEPS
        self._is_first = False
        stepping = self._step(batch, 1)[0]
        spent = stepping
        for _ in range(warm_up - 1):
            if stepping > self._quick_seconds or spent > 2 * self._quick_seconds:
                break
            stepping = self._step(batch, 1)[0]
            spent += stepping
        timed = _CALIBRATION_STEPS if stepping <= self._quick_seconds else 1
        steps = [self._step(batch, 1) for _ in range(timed)]
        return Station(
            batch_size,
            stream,
            batch,
            min([stepping, *(seconds for seconds, _ in steps)]),
            loading,
            stretches=[stretch for _, stretch in steps if stretch is not None],
        )

    def window(self, station: Station) -> None:
        """Take one sample of both times; a device is waited for before and after only."""
        limit = _OVERRUN * station.window_seconds
        seconds, batch = self._load(station.stream, station.loads_per_window, limit)
        station.load_samples.append(seconds)
        station.fill_samples.append((self._task.weigh(batch), elements_in(batch)))
        seconds, stretch = self._step(station.batch, station.steps_per_window, limit)
        station.step_samples.append(seconds)
        if stretch is not None:
            station.stretches.append(stretch)

    def _typical(self, stream: Iterator[Any], batch: Any, load_seconds: float) -> Any:
        """Take the batch of middle size of a few, where examples are of unequal length."""
        batches = [batch]
        for _ in range(_TYPICAL_OF - 1):
            if load_seconds * _TYPICAL_OF > self._quick_seconds:
                break
            batches.append(next(stream))
            if len(batches) == 2 and elements_in(batches[0]) == elements_in(batches[1]):
                return batch
        return sorted(batches, key=elements_in)[len(batches) // 2]

    def _load(
        self, stream: Iterator[Any], count: int, limit: float = math.inf
    ) -> tuple[float, Any]:
        """Load a few batches; return the seconds for each, and the last one.

        No two hold the same examples, so their low quantile counts and not the fastest.
        """
        batch = None

        def load() -> None:
            nonlocal batch
            batch = next(stream)
            synchronize(self._task.device)

        synchronize(self._task.device)
        seconds = time_each(load, count, self._clock, self._processor, limit_seconds=limit)
        return float(np.quantile(seconds, QUANTILE)), batch

    def _step(
        self, batch: Any, count: int, limit: float = math.inf
    ) -> tuple[float, Stretch | None]:
        """Take a few steps; return the seconds of the fastest, and what threads did meanwhile.

        All do the same work on the same batch: what one took longer than another was disturbed.
        On a CPU every step has an end of its own; a device would have to be waited for after each,
        so there their mean counts.
        """
        synchronize(self._task.device)
        before, began = self._read(), self._clock()
        seconds = time_each(
            lambda: self._task.step(batch),
            count,
            self._clock,
            self._processor,
            limit_seconds=limit,
        )
        synchronize(self._task.device)
        passed = self._clock() - began
        if self._task.device.type != "cpu":
            return passed / len(seconds), None
        return min(seconds), stretch_between(passed, before, self._read())

    def _read(self) -> Reading | None:
        return self._processor.look() if self._processor is not None else None


def elements_in(batch: Any) -> int:
    """Count the elements of a batch's tensors, padding included.

    Args:
        batch: A tensor, or a sequence or mapping of them, also nested; the rest counts nothing.

    Example:
        >>> import torch
        >>> elements_in({"tokens": torch.zeros(3, 8), "names": ["a", "b", "c"]})
        24
    """
    if isinstance(batch, Tensor):
        return batch.numel()
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
        return sum(elements_in(part) for part in batch)
    return 0
