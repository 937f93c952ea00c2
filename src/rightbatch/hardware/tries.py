"""Sizes tried by real steps in this process, where the task cannot be sent to one of its own."""

from collections.abc import Callable
from functools import partial
from typing import Any, final

from rightbatch._comm import gradients_apart
from rightbatch._time import Deadline, Progress, synchronize
from rightbatch.hardware.compiled import compile_ahead, is_compiled
from rightbatch.hardware.meters import Meter, meter_for, reclaim
from rightbatch.hardware.outcomes import classify
from rightbatch.hardware.search import ProbeOutcome
from rightbatch.hardware.workload import (
    batches_to_try,
    bytes_in,
    prefetched_batches,
    take_step,
)
from rightbatch.task import Task


@final
class Tries:
    """Real steps at one batch size after another; remembers what the last one took.

    Args:
        task: Moved by every step: inside `Task.preserved`.
        meter: Of the memory that a try takes.
        deadline: No try should end after it.
        seed: Of the shuffle.
        progress: Told each size.
        held: Bytes that training holds before the first step.
        worst_case: Makes the largest batch of so many examples, on the host; ``None``: batches are
            drawn from the data.
        accumulation_steps: Micro-batches per optimizer step.
        steps: Optimizer steps per try.
    """

    def __init__(
        self,
        task: Task,
        meter: Meter,
        deadline: Deadline,
        seed: int,
        progress: Progress,
        *,
        held: int,
        worst_case: Callable[[int], Any] | None,
        accumulation_steps: int,
        steps: int,
    ) -> None:
        self._task, self._meter, self._deadline = task, meter, deadline
        self._progress, self._held = progress, held
        self._accumulation_steps, self._steps = accumulation_steps, steps
        self._batches_of = partial(batches_to_try, task, worst_case=worst_case, seed=seed)
        self._seconds_per_example: float | None = None
        self._is_first = True

    def __call__(self, size: int) -> ProbeOutcome:
        """Take the steps of one try; out of memory is an outcome."""
        self._progress(self._deadline.fraction(), f"memory: trying batch size {size}")
        try:
            with gradients_apart(self._task.model):  # a rank that fails leaves nobody waiting
                if self._is_first and is_compiled(self._task):
                    compile_ahead(self._task, self._batches_of)
                    self._meter = meter_for(self._task.device)  # the compiler's own is no batch's
                self._meter.reset()
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
        batches = self._batches_of(size)
        batch_bytes, spent = 0, 0.0

        def next_batch() -> Any:
            nonlocal batch_bytes
            batch = next(batches)
            batch_bytes = max(batch_bytes, bytes_in(batch))
            return batch

        for done in range(1, self._steps + 1):
            take_step(self._task, next_batch, self._accumulation_steps)
            synchronize(self._task.device)
            spent = self._deadline.elapsed_seconds() - start
            left = (self._steps - done) * spent / done
            if not self._is_first and left > 2 * max(0.0, self._deadline.remaining_seconds()):
                return ProbeOutcome("slow", None)
        self._seconds_per_example = spent / size
        peak = self._meter.peak_bytes()
        if self._task.device.type == "cpu":  # what waits there, and one more in the making
            peak += (prefetched_batches(self._task) + self._task.num_workers) * batch_bytes
        return ProbeOutcome("ok", peak + self._held)
