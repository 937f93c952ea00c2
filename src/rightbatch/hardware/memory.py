"""Which batch sizes fit: predicted without executing, then executed to be certain.

predict   peaks of live bytes on fake tensors, any size, nothing executed
try       real steps, each size in a process of its own under the limit
in_process   the same steps here, where the task cannot be sent elsewhere or time is short
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import cache
from itertools import count
from typing import Any, final

import torch

from rightbatch._comm import Comm, default_comm
from rightbatch._format import format_bytes
from rightbatch._time import Clock, Deadline, Progress, no_progress, wall_clock
from rightbatch.hardware.agreement import Agreed, largest, least, on_all_or_none
from rightbatch.hardware.budget import device_budget_bytes, room_beside_bytes
from rightbatch.hardware.fake import CannotPredict, FakeSteps, fakes_of
from rightbatch.hardware.feasible import search_predicted
from rightbatch.hardware.heap import heap_note, spare_share
from rightbatch.hardware.isolation import CannotIsolate, Isolated
from rightbatch.hardware.meters import meter_for
from rightbatch.hardware.pool import with_pool
from rightbatch.hardware.ranks import without_ranks
from rightbatch.hardware.search import Probe, ProbeOutcome, search
from rightbatch.hardware.tries import Tries
from rightbatch.hardware.workload import (
    NO_CAP,
    held_bytes,
    hold_still,
    host_batches,
)
from rightbatch.hardware.worst_case import find_longest
from rightbatch.results import MemoryProfile
from rightbatch.task import Task
from rightbatch.task.data import examples_in, to_device
from rightbatch.task.preflight import mixes_examples

_STEPS = 3  # the optimizer's state is made in the first step, and counts from the second on
_FIRST = 8  # examples, where the task names no batch size
_LOOSE = 3.0  # times the budget, to learn the peak of a size that was refused
_CPU_OVERSHOOT = 1.25  # of the budget, where that much is free: the budget is a share of it


def measure_memory(
    task: Task,
    *,
    budget_bytes: int | None = None,
    isolate: bool = True,
    accumulation_steps: int = 1,
    time_budget_seconds: float | None = None,
    seed: int = 0,
    comm: Comm | None = None,
    progress: Progress = no_progress,
    clock: Clock = wall_clock,
) -> MemoryProfile:
    """Find the largest batch that fits in memory.

    Peaks are predicted on tensors without numbers, which takes a fraction of a second at any size
    and touches nothing; one to three sizes are then executed, three full optimizer steps each, in
    a process of their own in which the system refuses more memory than the budget. Models that
    cannot run without numbers are searched by real steps alone: see `search`.

    Only sizes that were executed count as fitting. What fits is not what should be used: on
    most tasks the largest batch is far from the fastest way to train.

    Where examples differ in length, batches are made of copies of the longest one found, or by
    the task's own ``worst_case``. Under a process group every rank tries for itself, without any
    communication inside a step, and the least of all ranks counts.

    Args:
        task: What is trained; left as it was.
        budget_bytes: Bytes for all that training holds on the task's device: weights, gradients,
            optimizer state, activations, batches. A smaller one emulates a smaller device. By
            default, and at most, what is held now and a safe share of what is free: see
            `cpu_budget_bytes`. ``notes`` say where a limit was lowered to that.
        isolate: Whether to try sizes in processes of their own. A task that cannot be pickled, or
            has no room for a second copy, is tried here, and ``notes`` say so.
        accumulation_steps: Micro-batches per optimizer step; the size is that of one of them.
        time_budget_seconds: Begin no try that would not end by then. ``None``: no limit.
        seed: Of the shuffle and of the random state in the steps.
        comm: The ranks that train; by default the process group, where there is one.
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
        >>> profile = measure_memory(QuadraticTask(examples=32).task, isolate=False)
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
    if accumulation_steps < 1:
        raise ValueError(
            f"`accumulation_steps` must be at least 1, got {accumulation_steps!r}. "
            "It counts the micro-batches of an optimizer step."
        )
    deadline = Deadline(math.inf if time_budget_seconds is None else time_budget_seconds, clock)
    task.check()
    comm = default_comm(task.device) if comm is None else comm
    task, buckets = without_ranks(task)
    held = held_bytes(task) + buckets
    safe = device_budget_bytes(task.device) + held
    wanted = safe if budget_bytes is None else budget_bytes
    hunt = _Hunt(
        task=task,
        held=held,
        buckets=buckets,
        budget=least(comm, min(wanted, safe)),
        notes=_lowered(wanted, safe),
        accumulation_steps=accumulation_steps,
        seed=seed,
        deadline=deadline,
        progress=progress,
        comm=comm,
    )
    return hunt.apart() if isolate else hunt.here(())


def _lowered(wanted: int, safe: int) -> list[str]:
    """Say that a limit is larger than the machine, where nothing else would stop the tries."""
    if wanted <= safe:
        return []
    return [
        f"The limit is {format_bytes(safe)}, a safe share of what is free, and not "
        f"{format_bytes(wanted)}: more could end this process or others."
    ]


@final
class _Hunt:
    """One search, with all that it needs."""

    def __init__(
        self,
        *,
        task: Task,
        held: int,
        buckets: int,
        budget: int,
        accumulation_steps: int,
        seed: int,
        deadline: Deadline,
        progress: Progress,
        comm: Comm,
        notes: list[str],
    ) -> None:
        self._task, self._held, self._budget = task, held, budget
        self._buckets = buckets
        self._accumulation_steps, self._seed = accumulation_steps, seed
        self._deadline, self._progress, self._comm = deadline, progress, comm
        # Ranks whose shards differ try the same sizes, so what decides on them is the least of all.
        self._cap = least(comm, task.max_batch_size or NO_CAP)
        self._floor = 2 if mixes_examples(task.model) else 1
        self._first = min(least(comm, task.batch_size or _FIRST), self._cap)
        self._spare_share = spare_share(task.device, budget)
        # Only as far as it is safe: where the budget is all there is, nothing is looser.
        safe = device_budget_bytes(task.device) + held
        self._room = room_beside_bytes(task.device)  # for a second copy of the task, and its tries
        self._loose = least(comm, min(int(_LOOSE * budget), safe, self._room))
        self._units = 1.0
        self._notes = notes
        self._worst_case = on_all_or_none(comm, self._find_worst_case, "read the data set")

    def apart(self) -> MemoryProfile:
        """Try sizes in processes of their own."""
        with ExitStack() as stack:
            try:
                isolated = on_all_or_none(
                    self._comm,
                    lambda: stack.enter_context(self._isolated()),
                    "send the task to a process of its own",
                    kind=CannotIsolate,
                )
                return self._finished(self._apart(self._probe_of(isolated)))
            except CannotIsolate as error:  # at the first try, where there is no room for a second
                reason = f"Tried in this process, not in one of its own: {error}"
        return self.here((reason,))

    def _isolated(self) -> Isolated:
        if self._budget > self._room:
            raise CannotIsolate(
                "there must be room for the task a second time to try it in a process of its own, "
                f"got less than {format_bytes(self._budget)} free beside the first. A smaller "
                "`budget_bytes` leaves it."
            )
        with self._task.preserved(weights=False):
            pooled = with_pool(self._task, seed=self._seed)
        return Isolated(
            pooled,
            self._worst_case,
            seed=self._seed,
            accumulation_steps=self._accumulation_steps,
        )

    def _apart(self, probe: Probe) -> MemoryProfile:
        try:
            return self._predicted(probe)
        except CannotPredict as error:
            self._notes.append(f"Searched by real steps alone: {error}")
            return self._searched(probe, math.inf, self._has_time)

    def here(self, notes: tuple[str, ...]) -> MemoryProfile:
        """Try sizes in this process, and put everything back."""
        self._notes += notes
        task = self._task
        with task.preserved():
            torch.manual_seed(self._seed)
            hold_still(task.optimizer)
            tries = Tries(
                task,
                meter_for(task.device),
                self._deadline,
                self._seed,
                self._progress,
                held=self._held,
                worst_case=self._worst_case,
                accumulation_steps=self._accumulation_steps,
                steps=_STEPS,
            )
            overshoot = self._overshoot() if task.device.type == "cpu" else math.inf
            profile = self._searched(
                Agreed(self._comm, tries),
                overshoot,
                lambda size: bool(least(self._comm, tries.fits_in_time(size))),
            )
        return self._finished(profile)

    def _overshoot(self) -> float:
        """Return how far beyond the budget a try may go here, where the system refuses nothing."""
        free = least(self._comm, self._held + self._room)
        return max(1.0, min(_CPU_OVERSHOOT, free / self._budget))

    def _find_worst_case(self) -> Callable[[int], Any] | None:
        task = self._task
        if task.worst_case is not None:
            return task.worst_case
        with task.preserved(weights=False):
            longest = find_longest(task, seed=self._seed)
        if longest is not None:
            self._notes.append(longest.note)
        return longest

    def _predicted(self, probe: Probe) -> MemoryProfile:
        self._progress(self._deadline.fraction(), "memory: predicting")
        with ExitStack() as stack:
            fakes = on_all_or_none(
                self._comm,
                lambda: stack.enter_context(self._fakes()),
                "make its tensors without numbers",
                kind=CannotPredict,
            )

            @cache
            def predict(size: int) -> int:
                peak = on_all_or_none(
                    self._comm,
                    lambda: fakes.peak_bytes(size),
                    "take a step without numbers",
                    kind=CannotPredict,
                )
                return largest(self._comm, peak + self._buckets)

            profile = search_predicted(
                predict,
                probe,
                cap=self._cap,
                budget_bytes=self._budget,
                floor=self._floor,
                spare=self._spare_share,
                refused_bytes=self._loose,
                may_start=self._has_time,
            )
            if fakes.guarded:
                self._notes.append(
                    "The step looks at numbers (a loss, a condition): the prediction assumes that "
                    "they are finite and that no such condition holds."
                )
        return profile

    def _fakes(self) -> AbstractContextManager[FakeSteps]:
        task = self._task
        seeds = count(self._seed)  # other examples at every draw: shapes may depend on them

        def batch_of(size: int) -> Any:
            if self._worst_case is not None:
                return self._worst_case(size)
            return next(host_batches(task, size, seed=next(seeds)))

        with task.preserved(weights=False):
            batch = batch_of(2)
            self._units = task.weigh(to_device(batch, task.device)) / (examples_in(batch) or 2)
        return fakes_of(task, batch_of, accumulation_steps=self._accumulation_steps)

    def _searched(
        self, probe: Probe, overshoot: float, may_start: Callable[[int], bool]
    ) -> MemoryProfile:
        return search(
            probe,
            cap=self._cap,
            first=self._first,
            budget_bytes=self._budget,
            may_start=may_start,
            floor=self._floor,
            overshoot=overshoot,
        )

    def _has_time(self, size: int) -> bool:
        return bool(least(self._comm, not self._deadline.passed()))

    def _probe_of(self, isolated: Isolated) -> Probe:
        spare = int((1 - self._spare_share) * self._budget) - self._held
        loose = self._loose - self._held

        def probe(size: int) -> ProbeOutcome:
            self._progress(self._deadline.fraction(), f"memory: trying batch size {size}")
            if spare <= 0:
                return ProbeOutcome("oom", None)
            seconds = max(0.0, self._deadline.remaining_seconds())
            try:
                answer = isolated.try_size(
                    size, budget_bytes=spare, loose_bytes=loose, steps=_STEPS, seconds=seconds
                )
            except Exception as error:
                error.add_note(f"while trying batch size {size}")
                raise
            peak = answer.peak_bytes
            return ProbeOutcome(answer.outcome, None if peak is None else peak + self._held)

        return Agreed(self._comm, probe)

    def _finished(self, profile: MemoryProfile) -> MemoryProfile:
        if (note := heap_note(profile, self._task.device)) is not None:
            self._notes.append(note)
        return replace(
            profile,
            held_bytes=self._held,
            units_per_example=self._units,
            notes=tuple(self._notes),
        )
