"""What one optimizer step costs, against batch size: loading and computing apart."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch

from rightbatch._time import Clock, Deadline, Progress, no_progress, wall_clock
from rightbatch.errors import TaskError
from rightbatch.hardware.budget import device_budget_bytes
from rightbatch.hardware.clocks import Loop, measure_workers
from rightbatch.hardware.diagnosis import Symptoms, diagnose, loading_matters
from rightbatch.hardware.meters import Meter, meter_for, reclaim
from rightbatch.hardware.outcomes import classify
from rightbatch.hardware.paging import paging_note
from rightbatch.hardware.processor import Processor, processor_beside
from rightbatch.hardware.stations import Station, Stopwatch
from rightbatch.hardware.step_curve import fit_step_shape
from rightbatch.hardware.step_time import estimate_seconds, fit_step_line, reaches_plateau
from rightbatch.hardware.workload import NO_CAP, hold_still
from rightbatch.results import (
    LoopClocks,
    Status,
    StepShares,
    ThroughputPoint,
    ThroughputProfile,
    WorkerPoint,
)
from rightbatch.task import Task
from rightbatch.task.preflight import mixes_examples

_SMALLEST = 4  # examples; below, a step costs hardly less
_SLOW_SHARE = 0.03  # of the budget: a size whose step takes longer is not tried by default
_CALIBRATION_SHARE = 0.4
_CLOCKS_SHARE, _PARTS_SHARE, _WORKERS_SHARE = 0.12, 0.04, 0.2  # of the budget
_FEWEST_ROUNDS, _PLANNED_ROUNDS, _MOST_ROUNDS = 4, 10, 40
_LONGEST_WINDOW_SECONDS = 0.25
_NARROW = 0.03  # interval over value; enough once every size has it


def measure_throughput(
    task: Task,
    sizes: Sequence[int] | None = None,
    *,
    max_batch_size: int | None = None,
    time_budget_seconds: float = 20.0,
    seed: int = 0,
    progress: Progress = no_progress,
    clock: Clock = wall_clock,
) -> ThroughputProfile:
    """Measure seconds per optimizer step at several batch sizes.

        calibrate upward   4: warm up, time | 8: warm up, time | 16: ...      until the plateau
        round 1            16 16 16 | 4 4 4 4 4 4 | 64 | 8 8 8 8 | 32 32      random order,
        round 2            8 8 8 8 | 64 | 4 4 4 4 4 4 | 32 32 | 16 16 16      one window a size
        ...

    Sizes are interleaved in random order, so that a machine that is busy for a while makes
    all of them a little unsure and none of them wrong. A step is taken on a batch that is
    already on the device; loading is timed apart. What a training loop pays for both is looked
    at beside them, at today's size: the sum, or with worker processes about the larger one.

    At that size the parts of a step are timed too, and loading with more worker processes where
    loading matters. From all this the bottleneck is named, with what to try.

    Steps of one window do the same work, so the fastest of them counts, and over the rounds the
    20 % quantile. Linux tells how long this thread stood in line for a processor during each,
    which is taken off; what other processes did to caches and memory cannot be, nor what threads
    of one step did to each other. The interval covers what varied while measuring.

    Args:
        task: What is trained; left as it was. Learning rates are turned down meanwhile.
        sizes: Batch sizes to measure, all of them and however slow. By default powers of two
            from 4 up to the cap or the plateau (two doublings in a row gain less than 5 %
            examples per second), and always today's batch size; sizes whose step would take
            more than 3 % of the time budget are left out, but two are always measured.
        max_batch_size: Largest size by default, such as what fits in memory.
        time_budget_seconds: Time to spend; more rounds make the intervals narrower.
        seed: Of shuffles, order and resampling.
        progress: Told how much of the time is spent, and on what.
        clock: Monotonic seconds.

    Returns:
        The points, ascending in batch size, with the line through them and what limits the
        rate at today's batch size, or at the largest where today's is not known. The status is
        ``PLATEAU`` where larger sizes would be no faster per example, ``OUT_OF_TIME`` where
        time cut the sizes or left fewer than 4 rounds, ``OK`` otherwise.

    Raises:
        ValueError: If a size or the budget is out of range.
        TaskError: If the task cannot be measured, or no size fits in memory.

    Example:
        >>> from rightbatch.testing import QuadraticTask
        >>> profile = measure_throughput(QuadraticTask().task, [8, 2], time_budget_seconds=0.5)
        >>> [point.batch_size for point in profile.points]
        [2, 8]
    """
    deadline = Deadline(time_budget_seconds, clock)
    cap = _check_arguments(task, sizes, max_batch_size, time_budget_seconds)
    task.check()
    with task.preserved(), processor_beside(clock) as processor:
        torch.manual_seed(seed)
        hold_still(task.optimizer)
        stopwatch = Stopwatch(
            task,
            clock,
            processor=processor,
            budget_seconds=time_budget_seconds,
            seed=seed,
        )
        bench = _Bench(task, stopwatch, deadline, progress)
        if sizes is None:
            status = bench.open_upwards(cap, guard_memory=max_batch_size is None)
        else:
            status = bench.open_all(sorted({int(size) for size in sizes}))
        aside = bench.look_aside(seed, clock, processor)
        rounds = bench.run_rounds(np.random.default_rng(seed))
        stations = bench.stations
    if rounds < _FEWEST_ROUNDS:
        status = Status.OUT_OF_TIME
    return _summarize(stations, aside, today=task.batch_size, seed=seed, status=status)


def _check_arguments(
    task: Task, sizes: Sequence[int] | None, max_batch_size: int | None, budget: float
) -> int:
    """Raise where an argument is out of range; return the largest size to try by default."""
    if not (math.isfinite(budget) and budget > 0):
        raise ValueError(
            f"`time_budget_seconds` must be positive and finite, got {budget!r}. "
            "Ten seconds are enough for most models."
        )
    if max_batch_size is not None and max_batch_size < 1:
        raise ValueError(
            f"`max_batch_size` must be at least 1, got {max_batch_size!r}. "
            "Where nothing fits in memory there is nothing to time."
        )
    cap = task.max_batch_size or NO_CAP
    if sizes is not None:
        wrong = [size for size in sizes if int(size) != size or not 1 <= size <= cap]
        if wrong or not sizes:
            raise ValueError(
                f"`sizes` must be whole numbers from 1 to {cap} (the data set or the task's "
                f"max_batch_size), got {list(sizes)[:5]!r}. A larger batch cannot be drawn."
            )
    return min(cap, max_batch_size) if max_batch_size is not None else cap


def _default_sizes(cap: int, today: int | None, floor: int) -> list[int]:
    """Return powers of two up to the cap, the cap, and today's size."""
    smallest = _SMALLEST if cap >= 2 * _SMALLEST else min(floor, cap)
    powers = [smallest * 2**k for k in range(cap.bit_length()) if smallest * 2**k * 1.25 <= cap]
    return sorted({*powers, cap} | ({today} if today and today <= cap else set()))


@final
class _Bench:
    """The sizes under measurement, opened one by one and then timed in rounds."""

    def __init__(
        self, task: Task, stopwatch: Stopwatch, deadline: Deadline, progress: Progress
    ) -> None:
        self._task, self._stopwatch = task, stopwatch
        self._deadline, self._progress = deadline, progress
        self.stations: list[Station] = []

    def open_all(self, sizes: Sequence[int]) -> Status:
        for size in sizes:
            self._open(size)
        self._check_some()
        return Status.OK

    def open_upwards(self, cap: int, *, guard_memory: bool) -> Status:
        """Open growing sizes until the plateau, the cap, or the time for it is up."""
        today = self._task.batch_size
        floor = 2 if mixes_examples(self._task.model) else 1
        guard = _MemoryGuard(self._task) if guard_memory else None
        status, rates = Status.OK, []
        for size in _default_sizes(cap, today, floor):
            if status is not Status.OK and size != today:
                continue
            if len(self.stations) >= 2 and size != today and self._is_slow(size):
                status = Status.OUT_OF_TIME
                continue
            refused = guard is not None and guard.refuses(size) and size != today
            if refused or not self._open(size):
                break
            rates.append((size, size / self._cost(self.stations[-1])))
            if reaches_plateau(rates) and size != cap:
                status = Status.PLATEAU
        self._check_some()
        return status

    def look_aside(self, seed: int, clock: Clock, processor: Processor | None) -> "_Aside":
        """Look at the real loop and the parts of a step, at one size, and at other workers.

        Worker processes are started for one size: what they gain over loading in this process
        hardly depends on it, and starting them at every size would take longer than all the rest.
        """
        loops = [self._loop(station, seed, clock, processor) for station in self.stations]
        affordable = [loop for loop in loops if loop.cost_seconds() <= self._allow(_CLOCKS_SHARE)]
        today = [loop for loop in affordable if loop.batch_size == self._task.batch_size]
        needed = loops[:1] if self._task.num_workers else []  # the points cannot do without
        candidates = today or affordable[-1:] or needed
        if not candidates:
            return _Aside()
        (loop,) = candidates
        size = loop.batch_size
        self._progress(self._deadline.fraction(), f"throughput: the training loop at {size}")
        clocks = loop.measure_clocks(self._allow(_CLOCKS_SHARE))
        shares = loop.measure_shares(self._allow(_PARTS_SHARE))
        workers: tuple[WorkerPoint, ...] = ()
        if loading_matters(clocks.load_seconds, clocks.step_seconds, clocks.total_seconds):
            self._progress(self._deadline.fraction(), "throughput: trying worker processes")
            workers = measure_workers(loop, clocks, seconds=self._allow(_WORKERS_SHARE))
        return _Aside(clocks, shares, workers)

    def _allow(self, share: float) -> float:
        """Seconds for something aside: a share of the budget, but leave half of what is left."""
        left = max(0.0, self._deadline.remaining_seconds())
        return min(share * self._deadline.seconds, left / 2)

    def _loop(self, station: Station, seed: int, clock: Clock, processor: Processor | None) -> Loop:
        return Loop(
            task=self._task,
            batch_size=station.batch_size,
            batch=station.batch,
            stream=station.stream,
            step_seconds=station.step_seconds,
            load_seconds=station.load_seconds,
            seed=seed,
            clock=clock,
            processor=processor,
        )

    def run_rounds(self, rng: np.random.Generator) -> int:
        """Time every size once a round, in a new order, while there is time; return the rounds."""
        remaining = max(0.0, self._deadline.remaining_seconds())
        window = remaining / (_PLANNED_ROUNDS * len(self.stations))
        for station in self.stations:
            station.plan_window(min(window, _LONGEST_WINDOW_SECONDS))
        expected, rounds = sum(station.window_seconds for station in self.stations), 0
        while rounds < _MOST_ROUNDS and expected <= self._deadline.remaining_seconds():
            start = self._deadline.elapsed_seconds()
            for index in rng.permutation(len(self.stations)):
                self._stopwatch.window(self.stations[index])
            expected = self._deadline.elapsed_seconds() - start
            rounds += 1
            self._progress(self._deadline.fraction(), f"throughput: round {rounds}")
            if rounds > _FEWEST_ROUNDS and self._is_narrow(rng):
                break
        return rounds

    def _open(self, size: int) -> bool:
        """Open a size; return whether it fits in memory."""
        self._progress(self._deadline.fraction(), f"throughput: calibrating batch size {size}")
        try:
            self.stations.append(self._stopwatch.open(size))
        except Exception as error:
            if classify(error) is None:
                error.add_note(f"while timing batch size {size}")
                raise
        else:
            return True
        self._task.optimizer.zero_grad(set_to_none=True)
        reclaim(self._task.device)
        return False

    def _check_some(self) -> None:
        if not self.stations:
            raise TaskError(
                "at least one batch size must fit in memory to be timed, got out of memory at the "
                "smallest. Make the model smaller, or measure on a larger device."
            )

    def _cost(self, station: Station) -> float:
        """Return what a step takes, without loading where workers do that meanwhile."""
        loading = 0.0 if self._task.num_workers else station.load_seconds
        return max(station.step_seconds + loading, 1e-12)

    def _is_slow(self, size: int) -> bool:
        last = self.stations[-1]
        expected = (last.step_seconds + last.load_seconds) * size / last.batch_size
        late = self._deadline.elapsed_seconds() > _CALIBRATION_SHARE * self._deadline.seconds
        return late or expected > _SLOW_SHARE * self._deadline.seconds

    def _is_narrow(self, rng: np.random.Generator) -> bool:
        for station in self.stations:
            value, low, high = estimate_seconds(station.step_samples, rng)
            if high - low > _NARROW * value:
                return False
        return True


@final
class _MemoryGuard:
    """Refuses sizes that could exceed the memory budget, where no one measured memory before."""

    def __init__(self, task: Task) -> None:
        self._meter: Meter = meter_for(task.device)
        self._budget_bytes = device_budget_bytes(task.device)
        self._last: int | None = None

    def refuses(self, size: int) -> bool:
        """Judge by ``peak(k b) <= k peak(b)``, then start over for this size."""
        peak = self._meter.peak_bytes()
        last, self._last = self._last, size
        self._meter.reset()
        return last is not None and peak * size / last > self._budget_bytes


@final
@dataclass(frozen=True, slots=True)
class _Aside:
    """What was looked at beside the sizes, at one of them."""

    clocks: LoopClocks | None = None
    shares: StepShares | None = None
    workers: tuple[WorkerPoint, ...] = ()


def _summarize(
    stations: Sequence[Station], aside: _Aside, *, today: int | None, seed: int, status: Status
) -> ThroughputProfile:
    rng = np.random.default_rng(seed)
    loads = {
        station.batch_size: estimate_seconds(station.load_samples or [station.load_seconds], rng)[0]
        for station in stations
    }
    clocks = aside.clocks
    if clocks is not None and clocks.num_workers and loads[clocks.batch_size] > 0:
        gain = clocks.load_seconds / loads[clocks.batch_size]
        loads = {size: seconds * gain for size, seconds in loads.items()}
    overlap = clocks.overlap if clocks is not None else 0.0
    points = [_point(station, loads[station.batch_size], overlap, rng) for station in stations]
    alpha, beta, half = fit_step_line(points)
    found = diagnose(
        Symptoms(
            points=points,
            half_batch_size=half,
            batch_size=today,
            num_workers=clocks.num_workers if clocks is not None else 0,
            clocks=clocks,
            shares=aside.shares,
            workers=aside.workers,
        )
    )
    return ThroughputProfile(
        points=tuple(points),
        alpha_seconds=alpha,
        beta_seconds_per_example=beta,
        half_batch_size=half,
        bottleneck=found.bottleneck,
        status=status,
        evidence=found.evidence,
        advice=found.advice,
        clocks=clocks,
        shares=aside.shares,
        workers=aside.workers,
        shape=fit_step_shape(points),
        notes=tuple(note for note in (paging_note(points),) if note is not None),
    )


def _point(
    station: Station, load: float, overlap: float, rng: np.random.Generator
) -> ThroughputPoint:
    """Sum up one size; the loop pays both times but for what it hides of the shorter one."""
    step, low, high = estimate_seconds(station.step_samples or [station.step_seconds], rng)
    return ThroughputPoint(
        batch_size=station.batch_size,
        step_seconds=step,
        low=low,
        high=high,
        load_seconds=load,
        total_seconds=max(step, load) + (1 - overlap) * min(step, load),
        idle_share=station.idle_share,
        crowded_share=station.crowded_share,
        paging_share=station.paging_share,
        units=station.units,
        elements=station.elements,
    )
