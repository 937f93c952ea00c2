"""One try of one batch size, in a process of its own: it may be killed, and nothing else is.

A folder holds ``job.json`` and the pickled task. ``job.json`` is removed once the task is there and
ready for its first step; the answer goes to ``answer.json``. Nothing is read from or written to
standard streams.
"""

import ctypes
import json
import os
import signal
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from traceback import format_exception
from typing import Any, NoReturn, final

import cloudpickle
import torch
from torch import nn

from rightbatch._time import synchronize, wall_clock
from rightbatch.hardware.compiled import compile_ahead, is_compiled
from rightbatch.hardware.leaks import LeftOver, tensor_bytes
from rightbatch.hardware.limits import Limit, limit_for
from rightbatch.hardware.meters import Meter, meter_for, reclaim
from rightbatch.hardware.outcomes import classify
from rightbatch.hardware.settings import adopt
from rightbatch.hardware.workload import (
    batches_to_try,
    bytes_in,
    hold_still,
    prefetched_batches,
    start_over,
    take_step,
)
from rightbatch.task import Task

_LEAK_SHARE = 0.01  # of the budget, more in memory after each step than after the one before
# What oneDNN, cuBLAS, cuDNN and Python say of any failure, too little memory among them.
_WITHOUT_MEMORY = (
    "could not create a primitive",
    "could not execute a primitive",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_INTERNAL_ERROR",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "unable to find an engine",
    "can't start new thread",  # its stack has no room
)
_FULL_SHARE = 0.5  # of the budget in use: then that is what it means
_QUIET_STEPS = 4  # without a new peak
_GROWTH_SHARE = 0.2  # of the time, to wait for that: other sizes are to be tried in the rest
_ELEMENTS_PER_THREAD = 2**15  # that torch hands out at least, and so starts a thread for
_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to try."""

    batch_size: int
    steps: int  # at least
    most_steps: int  # while the peak still grows
    long_steps: int  # as long as they take no more than `patience_seconds`
    patience_seconds: float
    accumulation_steps: int
    budget_bytes: int  # above what is in use once the task is there
    loose_bytes: int  # a limit of its own for what ran out, only to learn how much it takes
    enforced: bool  # whether the system is to refuse more than that
    seconds: float | None  # give up beforehand where the steps would take longer
    seed: int
    threads: int
    paths: tuple[str, ...]  # where modules are looked for
    settings: dict[str, Any]  # of torch, in the process that asks


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of it."""

    outcome: str  # "ok", "oom", "thrash", "limit", "slow", "leak", "error", "crowded", "unready"
    peak_bytes: int | None = None
    seconds_per_example: float | None = None
    note: str = ""
    trace: str = ""  # of an error: where it came from


def main(folder: Path) -> NoReturn:
    """Do the job in a folder, leave the answer there, and end the process."""
    _end_with_parent()
    job = Job(**json.loads((folder / "job.json").read_text()))
    torch.set_num_threads(job.threads)
    try:
        answer = _answer(folder, job)
    except Exception as error:
        trace = "".join(format_exception(error))
        answer = Answer(outcome="error", note=f"{type(error).__name__}: {error}", trace=trace)
        with suppress(Exception):
            (folder / "error.pickle").write_bytes(cloudpickle.dumps(error))
    partial = folder / "answer.partial"
    partial.write_text(json.dumps(asdict(answer)))
    partial.replace(folder / "answer.json")
    # Threads of libraries may outlive the interpreter's end; the answer is written.
    os._exit(0)


def _answer(folder: Path, job: Job) -> Answer:
    try:
        adopt(job.settings)
        task, worst_case = torch.load(folder / "task.pickle", weights_only=False)
        _wake_up(task.device)
        attempt = _Attempt(task, worst_case, job)
    except Exception as error:
        # No batch was tried: there is no room beside what the parent holds, or code that ran well
        # there does not run here.
        outcome = "crowded" if classify(error) == "oom" else "unready"
        return Answer(outcome=outcome, note=f"{type(error).__name__}: {error}"[:500])
    (folder / "job.json").unlink()
    return attempt.run()


def _end_with_parent() -> None:
    """Leave nothing behind: be killed with the parent, and before anything else of it."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


@final
class _Attempt:
    """Steps at one size under a limit."""

    def __init__(self, task: Task, worst_case: Any, job: Job) -> None:
        self._task, self._job = task, job
        self._device = task.device
        torch.manual_seed(job.seed)
        hold_still(task.optimizer)
        batches_of = partial(batches_to_try, task, worst_case=worst_case, seed=job.seed)
        if is_compiled(task):
            compile_ahead(task, batches_of)
        self._batches = batches_of(job.batch_size)
        self._batch_bytes = 0
        self._had_state = bool(task.optimizer.state)

    def run(self) -> Answer:
        """Take the steps; whatever goes wrong is an outcome."""
        meter = meter_for(self._device)
        guard = limit_for(self._device, self._job.budget_bytes, enforced=self._job.enforced)
        begin = wall_clock()
        try:
            answer = self._steps(meter, guard)
        except Exception as error:
            guard.lift()
            kind = classify(error)
            full = meter.peak_bytes() > _FULL_SHARE * self._job.budget_bytes
            if kind is None and full and any(words in str(error) for words in _WITHOUT_MEMORY):
                kind = "oom"
            if kind is None:
                raise
            answer = Answer(outcome=kind, note=f"{type(error).__name__}: {error}"[:500])
        # Outside of `except`, where no traceback holds the tensors of the failed step.
        in_time = self._job.seconds is None or wall_clock() - begin < self._job.seconds
        if answer.outcome == "oom" and self._job.loose_bytes > self._job.budget_bytes and in_time:
            answer = self._beyond(meter, guard, answer)
        guard.lift()
        return answer

    def _beyond(self, meter: Meter, guard: Limit, refused: Answer) -> Answer:
        """Learn how much a size takes that was refused: the next one is then chosen well."""
        start_over(self._task, keep_state=self._had_state)
        reclaim(self._device)
        guard.loosen(self._job.loose_bytes)
        self._job = replace(self._job, long_steps=0)
        try:
            ran = self._steps(meter, guard)
        except Exception:  # whatever it is, the answer is known
            return refused
        if ran.outcome == "leak":
            return ran  # which explains the refusal
        if ran.outcome != "ok" or ran.peak_bytes is None:
            return refused
        # Pages that are asked for and not touched are refused too, and are in no peak.
        least = max(ran.peak_bytes, self._job.budget_bytes)
        return replace(refused, peak_bytes=least)

    def _steps(self, meter: Meter, guard: Limit) -> Answer:
        meter.reset()
        spent, peaks = 0.0, list[int]()
        left = LeftOver(_LEAK_SHARE * self._job.budget_bytes)
        while self._goes_on(peaks, spent, left):
            start = wall_clock()
            take_step(self._task, self._batch, self._job.accumulation_steps)
            synchronize(self._device)
            spent += wall_clock() - start
            if not peaks:
                guard.forget()  # libraries try out large workspaces in the first step
            peaks.append(meter.peak_bytes())
            if left.rises:
                left.note(tensor_bytes())
            rest = (self._job.steps - len(peaks)) * spent / len(peaks)
            if self._job.seconds is not None and rest > 2 * self._job.seconds:
                return Answer(outcome="slow", seconds_per_example=self._each(spent, len(peaks)))
        peak = peaks[-1]
        if self._device.type == "cpu":
            peak += (prefetched_batches(self._task) + self._task.num_workers) * self._batch_bytes
        outcome = "thrash" if guard.thrashed() else "ok"
        if outcome == "ok" and left.is_suspect:
            outcome = "leak"
        return Answer(
            outcome=outcome,
            peak_bytes=peak,
            seconds_per_example=self._each(spent, len(peaks)),
        )

    def _goes_on(self, peaks: list[int], spent: float, left: LeftOver) -> bool:
        """Whether the steps so far are too few, or more of them cost little."""
        job = self._job
        patient = spent < job.patience_seconds
        if left.rises:
            # Until it is suspect or not, then until it is certain: then it would only run out.
            return not left.is_suspect or (patient and not left.is_certain)
        patient = patient and len(peaks) < job.long_steps
        in_time = job.seconds is None or spent < _GROWTH_SHARE * job.seconds
        return len(peaks) < job.steps or patient or (in_time and self._grows(peaks))

    def _grows(self, peaks: list[int]) -> bool:
        """Whether one of the last steps took more memory than all before it.

        A heap is cut up in the first steps, and takes more until the pieces fit.
        """
        if len(peaks) >= self._job.most_steps:
            return False
        return peaks[-1] > peaks[-min(_QUIET_STEPS, len(peaks) - 1) - 1]

    def _batch(self) -> Any:
        batch = next(self._batches)
        self._batch_bytes = max(self._batch_bytes, bytes_in(batch))
        return batch

    def _each(self, spent: float, steps: int) -> float:
        return spent / (steps * self._job.batch_size)


def _wake_up(device: torch.device) -> None:
    """Start threads and load libraries now, so that no batch is charged for them."""
    layers = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 1)
    # Not of the default type, which some device may lack.
    model = nn.Sequential(*layers).to(device, torch.float32)
    inputs = torch.ones(4, 1, 8, 8, device=device, dtype=torch.float32)
    optimizers = [
        torch.optim.SGD(model.parameters(), lr=0.1),
        torch.optim.AdamW(model.parameters()),
    ]
    for optimizer in optimizers:
        model(inputs).sum().backward()
        optimizer.step()
    # The stacks of all threads, which small operations do not start: 8 MiB each.
    torch.zeros(torch.get_num_threads() * _ELEMENTS_PER_THREAD, dtype=torch.uint8).add_(1)
    synchronize(device)
    reclaim(device)
