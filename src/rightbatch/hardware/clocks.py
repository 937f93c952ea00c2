"""Three clocks, the parts of a step, and loading with other numbers of workers.

    loader alone      next next next ...                     load_seconds
    step alone        step step step ...   on a kept batch   step_seconds
    both together     next step next step ...                total_seconds

Without worker processes the loop pays the sum of both; with them the longer one, as far as the
workers do not take the processors away from the step. `LoopClocks.overlap` says how far.
"""

import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast, final

import numpy as np
from torch import nn

from rightbatch._time import Clock, synchronize, wall_clock
from rightbatch.hardware.processor import Processor, time_each
from rightbatch.hardware.step_time import QUANTILE
from rightbatch.hardware.workload import prefetched_batches
from rightbatch.results import LoopClocks, StepShares, WorkerPoint
from rightbatch.task import Task
from rightbatch.task.data import Source, to_device

_ROUNDS = 5
_FEWEST, _MOST = 2, 10  # iterations of a round, without workers
_MOST_PHASES = 8
_TINY_SECONDS = 1e-9
_FEWEST_WORKERS_TRIED, _MOST_WORKERS_TRIED = 4, 16
_START_SECONDS = 0.05  # a guess at what starting one worker takes, until one was started
_WORTH_TRYING = 0.9  # twice the workers must take less than this share of the time to go on


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """One batch size of a task, about to be clocked.

    Attributes:
        task: What is trained.
        batch_size: Examples.
        batch: That steps are taken on.
        stream: Loads in this process.
        step_seconds: First estimate.
        load_seconds: First estimate, in this process.
        seed: Of the shuffle.
        clock: Monotonic seconds.
        processor: What the threads did meanwhile, if it can be told: `processor_beside`.
    """

    task: Task
    batch_size: int
    batch: Any
    stream: Iterator[Any]
    step_seconds: float
    load_seconds: float
    seed: int
    clock: Clock
    processor: Processor | None = None

    def cost_seconds(self) -> float:
        """What one round of the three clocks is expected to take at the least."""
        ready, workers = prefetched_batches(self.task), max(1, self.task.num_workers)
        loads, steps = (4 * ready / workers, 2 * ready) if ready else (2 * _FEWEST, _FEWEST)
        return loads * self.load_seconds + (steps + 2 * _FEWEST) * self.step_seconds

    def measure_clocks(self, seconds: float) -> LoopClocks:
        """Look at the three clocks, in one round or a few.

        Args:
            seconds: To spend, about; one round is always made.

        Returns:
            The low quantile of each over the rounds. With workers steps are timed before and after
            the rounds, when none takes a processor away.
        """
        deadline = self.clock() + seconds
        count = self._count(seconds / _ROUNDS)
        rounds: list[tuple[float, float]] = []
        stepping = [self._time_steps(count)]
        with _batches(self.task, self.batch_size, self.stream, seed=self.seed) as stream:
            while len(rounds) < _ROUNDS:
                began = self.clock()
                rounds.append(self._round(stream, count))
                if not self.task.num_workers:
                    stepping.append(self._time_steps(count))
                if 2 * self.clock() - began > deadline:
                    break
        if self.task.num_workers:
            stepping.append(self._time_steps(count))
        parts = (*zip(*rounds, strict=True), stepping)
        load, total, step = (float(np.quantile(part, QUANTILE)) for part in parts)
        return LoopClocks(
            batch_size=self.batch_size,
            num_workers=self.task.num_workers,
            load_seconds=load,
            step_seconds=step,
            total_seconds=total,
            overlap=self._overlap(load, step, total),
        )

    def _count(self, seconds: float) -> int:
        """How many batches a round of so many seconds has time for, in this process."""
        each = 2 * (self.load_seconds + self.step_seconds)
        return min(_MOST, max(_FEWEST, int(seconds / max(each, _TINY_SECONDS))))

    def _time_steps(self, count: int) -> float:
        return self._time(lambda: self.task.step(self.batch), count, 1)

    def _round(self, stream: Iterator[Any], count: int) -> tuple[float, float]:
        """Time loading, then the loop; first discard what workers made ready meanwhile."""
        workers = max(1, self.task.num_workers)
        ready = prefetched_batches(self.task)
        count = ready or count

        def load_and_step() -> None:
            self.task.step(next(stream))

        for _ in range(ready):
            next(stream)
        load_seconds = self._time(lambda: next(stream), count, workers)
        for _ in range(ready):
            load_and_step()
        return load_seconds, self._time(load_and_step, count, workers)

    def _time(self, act: Callable[[], object], count: int, group: int) -> float:
        """Return the seconds of one act.

        On a CPU the low quantile over groups: workers deliver as many batches at a time as there
        are workers. A device is waited for before and after only.
        """
        device = self.task.device
        synchronize(device)
        began = self.clock()
        # With workers nothing is taken off: what they take from the step is part of the loop.
        processor = None if self.task.num_workers or device.type != "cpu" else self.processor
        seconds = time_each(act, count, self.clock, processor)
        synchronize(device)
        if device.type != "cpu":
            return (self.clock() - began) / count
        groups = [sum(seconds[i : i + group]) for i in range(0, count - group + 1, group)]
        return float(np.quantile(groups, QUANTILE)) / group

    def _overlap(self, load: float, step: float, total: float) -> float:
        """Share of the shorter time that the loop does not pay."""
        if not self.task.num_workers and self.task.device.type == "cpu":
            return 0.0  # one thing after the other
        shorter = min(load, step)
        return min(1.0, max(0.0, (load + step - total) / shorter)) if shorter > 0 else 1.0

    def measure_shares(self, seconds: float) -> StepShares | None:
        """Time the parts of a step on the kept batch; ``None`` where not one step is affordable.

        A device is waited for after each part, so a step that only launches work takes longer
        here than elsewhere: the parts count as shares, not as seconds.
        """
        count = min(_MOST_PHASES, int(seconds / max(self.step_seconds, _TINY_SECONDS)))
        if count < 1:
            return None
        parts = np.array([self._parts() for _ in range(count)])
        low = np.quantile(parts, QUANTILE, axis=0)
        if not low.sum() > 0:
            return None
        forward, backward, optimizer = (float(share) for share in low / low.sum())
        return StepShares(
            batch_size=self.batch_size, forward=forward, backward=backward, optimizer=optimizer
        )

    def _parts(self) -> tuple[float, float, float]:
        """Seconds of forward, backward and optimizer in one step, which is `Task.step`'s."""
        task = self.task
        began = self._look()
        task.optimizer.zero_grad(set_to_none=True)
        zeroed = self._look()
        loss, _ = task.loss(self.batch)
        forward = self._look()
        loss.backward()
        backward = self._look()
        if task.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(task.model.parameters(), task.clip_grad_norm)
        task.optimizer.step()
        optimizer = self._look() - backward + zeroed - began
        return forward - zeroed, backward - forward, optimizer

    def _look(self) -> float:
        synchronize(self.task.device)
        return self.clock()


@contextmanager
def _batches(task: Task, size: int, stream: Iterator[Any], *, seed: int) -> Iterator[Iterator[Any]]:
    """The batches of the real loop, on the device; without workers those of the stream at hand."""
    if not task.num_workers:
        yield stream
        return
    batches = cast(Any, task.batches(size, seed=seed))
    with closing(batches):
        yield batches


def measure_workers(loop: Loop, known: LoopClocks, *, seconds: float) -> tuple[WorkerPoint, ...]:
    """Time loading with more and more worker processes, while that gains and time allows.

    Workers are forked, on Linux only: elsewhere each of them would run the user's script anew.
    A data set that refuses worker processes ends the trial, not the measurement.

    Args:
        loop: At the size to load.
        known: What was clocked with the task's own workers.
        seconds: To spend.

    Returns:
        Ascending in workers, the task's own among them; empty where none other could be tried.
    """
    if loop.clock is not wall_clock or not _can_fork():
        return ()  # no worker can see another clock than the wall's
    own = loop.task.num_workers
    found = {0: loop.load_seconds, own: known.load_seconds}
    deadline = loop.clock() + seconds
    starting = _START_SECONDS
    fewest = 1 if known.load_seconds <= known.step_seconds else 2  # one alone is no faster
    for count in _counts(max(own, fewest - 1)):
        loading = 4 * loop.load_seconds
        if loop.clock() + count * starting + loading > deadline:
            break
        began = loop.clock()
        try:
            found[count] = _load_with(loop, count)
        except Exception:  # of the data set in a worker: only tried, nobody asked for it
            break
        starting = max(_START_SECONDS, (loop.clock() - began - loading) / count)
        before = found.get(count // 2, known.load_seconds)
        if found[count] <= known.step_seconds or found[count] > _WORTH_TRYING * before:
            break
    if max(found) == own:
        return ()
    return tuple(WorkerPoint(num_workers=n, load_seconds=s) for n, s in sorted(found.items()))


def _counts(above: int) -> list[int]:
    """Powers of two above a number, up to the processors, or to 4 where those are fewer."""
    most = min(_MOST_WORKERS_TRIED, max(_FEWEST_WORKERS_TRIED, os.cpu_count() or 1))
    return [count for count in (1, 2, 4, 8, 16) if above < count <= most]


def _can_fork() -> bool:
    return sys.platform == "linux" and "fork" in multiprocessing.get_all_start_methods()


def _load_with(loop: Loop, num_workers: int) -> float:
    """Seconds of a batch with so many workers, what they prefetch discarded."""
    task = loop.task
    options = {"multiprocessing_context": "fork", **task.source.loader_options}
    source: Source = replace(task.source, num_workers=num_workers, loader_options=options)
    ready = num_workers * (options.get("prefetch_factor") or 2)
    with warnings.catch_warnings():
        # More workers than processors, or a fork beside threads, is the trial's own doing.
        warnings.simplefilter("ignore")
        batches = iter(source.loader(loop.batch_size, seed=loop.seed, epochs=None))
        for _ in range(ready):
            next(batches)

        def load() -> None:
            to_device(next(batches), task.device)

        return replace(loop, processor=None)._time(load, ready, num_workers)
