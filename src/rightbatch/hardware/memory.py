"""Which batch sizes fit, from real steps within a memory budget."""

import math
from typing import final

import torch

from rightbatch._time import Clock, Deadline, Progress, no_progress, wall_clock
from rightbatch.hardware.budget import device_budget_bytes
from rightbatch.hardware.meters import Meter, meter_for, reclaim
from rightbatch.hardware.outcomes import classify
from rightbatch.hardware.search import ProbeOutcome, search
from rightbatch.hardware.workload import (
    NO_CAP,
    batches_in_process,
    bytes_in,
    hold_still,
    prefetched_batches,
    synchronize,
)
from rightbatch.results import MemoryProfile
from rightbatch.task import Task
from rightbatch.task.preflight import mixes_examples

_STEPS = 3  # the optimizer's state is made in the first step, and counts from the second on
_FIRST = 8  # examples, where the task names no batch size
_CPU_OVERSHOOT = 1.25  # of the budget: still below the memory that the budget is a share of


def measure_memory(
    task: Task,
    *,
    budget_bytes: int | None = None,
    time_budget_seconds: float | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
    clock: Clock = wall_clock,
) -> MemoryProfile:
    """Find the largest batch that fits in memory, by taking real steps.

    Every try is three full optimizer steps on three batches of the data. Peak memory is
    convex in the batch size, so two tries bound all larger ones: see `search`.

    Only sizes that were executed count as fitting. What fits is not what should be used: on
    most tasks the largest batch is far from the fastest way to train. The try at the first
    size runs to its end whatever it takes.

    Args:
        task: What is trained; left as it was.
        budget_bytes: Bytes that training may use above what the process uses now (on the
            task's device). By default a safe share of what is free: see `cpu_budget_bytes`.
        time_budget_seconds: Begin no try that would not end by then. ``None``: no limit.
        seed: Of the shuffle and of the random state in the steps.
        progress: Told how much of the time is spent, and the size that is tried.
        clock: Monotonic seconds.

    Returns:
        The tries with their peaks on the scale of ``budget_bytes``, the largest size that fits,
        and a size above which nothing fits.

    Raises:
        ValueError: If a budget is not positive.
        TaskError: If the task cannot be measured. Errors of the task's own code surface
            unchanged, with a note of the batch size.

    Example:
        >>> from rightbatch.testing import QuadraticTask
        >>> profile = measure_memory(QuadraticTask(examples=32).task)
        >>> profile.max_verified_batch_size, profile.status.value
        (32, 'capped')
    """
    for name, value in (
        ("budget_bytes", budget_bytes),
        ("time_budget_seconds", time_budget_seconds),
    ):
        if value is not None and not value > 0:
            raise ValueError(
                f"`{name}` must be positive, got {value!r}. "
                "Nothing can be tried without it: leave it out for the default."
            )
    deadline = Deadline(math.inf if time_budget_seconds is None else time_budget_seconds, clock)
    task.check()
    with task.preserved():
        torch.manual_seed(seed)
        hold_still(task.optimizer)
        meter = meter_for(task.device)
        try_size = _Tries(task, meter, deadline, seed, progress)
        cap = task.max_batch_size or NO_CAP
        return search(
            try_size,
            cap=cap,
            first=task.batch_size or min(_FIRST, cap),
            budget_bytes=device_budget_bytes(task.device) if budget_bytes is None else budget_bytes,
            may_start=try_size.fits_in_time,
            floor=2 if mixes_examples(task.model) else 1,
            overshoot=_CPU_OVERSHOOT if task.device.type == "cpu" else math.inf,
        )


@final
class _Tries:
    """Real steps at one batch size after another; remembers what the last one took."""

    def __init__(
        self, task: Task, meter: Meter, deadline: Deadline, seed: int, progress: Progress
    ) -> None:
        self._task, self._meter, self._deadline = task, meter, deadline
        self._seed, self._progress = seed, progress
        self._seconds_per_example: float | None = None
        self._is_first = True

    def __call__(self, size: int) -> ProbeOutcome:
        self._progress(self._deadline.fraction(), f"memory: trying batch size {size}")
        self._meter.reset()
        try:
            outcome = self._run(size)
        except Exception as error:
            failure = classify(error)
            if failure is None:
                error.add_note(f"while trying batch size {size}")
                raise
            outcome = ProbeOutcome(failure, None)
        # Outside of `except`, where no traceback holds the tensors of the failed step.
        if outcome.outcome != "ok":
            self._task.optimizer.zero_grad(set_to_none=True)
            reclaim(self._task.device)
        self._is_first = False
        return outcome

    def fits_in_time(self, size: int) -> bool:
        """Predict in proportion to the last size that ran, which a fixed cost makes cautious."""
        expected = 0.0 if self._seconds_per_example is None else self._seconds_per_example * size
        return expected < self._deadline.remaining_seconds()

    def _run(self, size: int) -> ProbeOutcome:
        """Take the steps, or give up after the first ones where they would take too long."""
        start = self._deadline.elapsed_seconds()
        batches = batches_in_process(self._task, size, seed=self._seed)
        held, spent = 0, 0.0
        for done in range(1, _STEPS + 1):
            batch = next(batches)
            self._task.step(batch)
            synchronize(self._task.device)
            held = max(held, bytes_in(batch))
            spent = self._deadline.elapsed_seconds() - start
            left = (_STEPS - done) * spent / done
            if not self._is_first and left > 2 * max(0.0, self._deadline.remaining_seconds()):
                return ProbeOutcome("slow", None)
        self._seconds_per_example = spent / size
        peak = self._meter.peak_bytes()
        if self._task.device.type == "cpu":  # what waits there, and one more in the making
            peak += (prefetched_batches(self._task) + self._task.num_workers) * held
        return ProbeOutcome("ok", peak)
