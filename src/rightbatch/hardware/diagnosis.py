"""What limits the rate of training, by which numbers, and what to try. Pure functions of numbers.

The causes are asked in the order in which they hide each other: while loading takes longest no
batch size matters; what waits is no work; padding makes an example dearer, which looks like
thrashing; only then does a fixed cost of a step speak for a larger batch.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

from rightbatch._format import format_count, format_number, format_seconds
from rightbatch.results import LoopClocks, StepShares, ThroughputPoint, WorkerPoint

_LOADING_EXCESS = 1.1  # over computing, where both overlap
_WORKERS_GAIN = 0.9  # what the loop would pay over what it pays now: worth naming
_NEAR = 1.05  # of the least that it would pay
_WORTH_SAVING = 0.1  # of what the loop pays
_IDLE = 0.5  # of a step
_PADDED = 0.2  # of a step that padding takes
_THRASHING = 1.5  # cost of an element over that at a smaller size, beyond the doubt of both
_FIXED, _VARIABLE = 2 / 3, 1 / 3  # share of a step that is its fixed cost
_FLAT = 2.0
_OPTIMIZER = 0.4  # of a step
_TINY_SECONDS = 1e-12


@final
@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A cause, the numbers that name it, and what to try.

    Attributes:
        bottleneck: As in `ThroughputProfile`.
        evidence: A sentence.
        advice: A sentence.
    """

    bottleneck: str
    evidence: str
    advice: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Symptoms:
    """All that a diagnosis is made of.

    Attributes:
        points: Ascending in batch size, at least one.
        half_batch_size: Of `fit_step_line`.
        batch_size: That is judged, where it was measured; the largest otherwise.
        num_workers: The task's loader processes; with any, loading and computing overlap.
        clocks: Of one size.
        shares: Of one size.
        workers: What loading takes with several numbers of processes, at the size of `clocks`.
    """

    points: Sequence[ThroughputPoint]
    half_batch_size: float | None
    batch_size: int | None = None
    num_workers: int = 0
    clocks: LoopClocks | None = None
    shares: StepShares | None = None
    workers: Sequence[WorkerPoint] = ()

    @property
    def judged(self) -> ThroughputPoint:
        """The point that is judged."""
        named = [point for point in self.points if point.batch_size == self.batch_size]
        return named[0] if named else self.points[-1]

    @property
    def fixed_share(self) -> float | None:
        """Share of the judged step that does not depend on its size; ``None``: not known."""
        if self.half_batch_size is not None:
            return self.half_batch_size / (self.half_batch_size + self.judged.batch_size)
        first, last = self.points[0], self.points[-1]
        flat = len(self.points) > 1 and last.step_seconds < _FLAT * first.step_seconds
        return 1.0 if flat else None


def diagnose(symptoms: Symptoms) -> Diagnosis:
    """Name what limits the rate at today's batch size, or at the largest one measured.

    Trap: the name is of this size. Past the half batch size what was launch-bound becomes
    compute-bound, and a loader that was fast enough is not.

    Args:
        symptoms: What was measured.

    Returns:
        ``"loading"`` (input-bound): no batch size helps. ``"sync"``: the step waits.
        ``"padding"``: examples of unequal length. ``"thrashing"``: an example costs more than at
        a smaller size. ``"overhead"`` (launch-bound): the fixed cost of a step, so a larger batch
        helps. ``"compute"``: a larger batch hardly helps. ``"mixed"``: between the last two, or
        too little is known.

    Example:
        Steps of 0.1 s + 0.1 ms for each example: at 100 of them nine tenths are fixed.

        >>> points = [
        ...     ThroughputPoint(batch_size=b, step_seconds=t, low=t, high=t,
        ...                     load_seconds=0.0, total_seconds=t)
        ...     for b, t in [(10, 0.101), (100, 0.11)]
        ... ]
        >>> found = diagnose(Symptoms(points=points, half_batch_size=1000.0))
        >>> found.bottleneck, found.evidence
        ('overhead', '91 % of a step of 110 ms at 100 examples is fixed cost, whatever its size.')
    """
    causes: tuple[Callable[[Symptoms], Diagnosis | None], ...] = (
        _loading,
        _waiting,
        _padding,
        _thrashing,
        _overhead,
        _compute,
        _mixed,
    )
    found = next(found for cause in causes if (found := cause(symptoms)) is not None)
    return replace(found, advice=f"{found.advice}{_loading_beside(symptoms, found)}")


def loading_matters(load_seconds: float, step_seconds: float, total_seconds: float) -> bool:
    """Whether other loader processes could save a tenth of what a training loop pays.

    Example:
        >>> loading_matters(0.2, 0.9, 1.1), loading_matters(0.2, 0.9, 0.95)
        (True, False)
    """
    return min(load_seconds, total_seconds - step_seconds) > _WORTH_SAVING * total_seconds


def _loading(seen: Symptoms) -> Diagnosis | None:
    point, clocks = seen.judged, seen.clocks
    load, step = point.load_seconds, point.step_seconds
    is_same = clocks is not None and clocks.batch_size == point.batch_size
    total = clocks.total_seconds if clocks is not None and is_same else point.total_seconds
    if load <= (_LOADING_EXCESS if seen.num_workers else 1.0) * step:
        return None
    evidence = (
        f"Loading a batch of {format_count(point.batch_size)} takes {format_seconds(load)} and "
        f"computing on it {format_seconds(step)}; the loop pays {format_seconds(total)} a step."
    )
    return Diagnosis("loading", evidence, f"No batch size helps{_workers(seen)}.")


def _workers(seen: Symptoms) -> str:
    """Name the fewest processes with which the loop pays about the least, if any gain."""
    others = _others(seen)
    if not others:
        return (
            ": load in more worker processes (num_workers), or make an example cheaper to load "
            "(decode or cache it beforehand)"
        )
    if not (gain := _workers_gain(seen)):
        return (
            f", nor do worker processes (up to {max(w.num_workers for w in others)} tried): make "
            "an example cheaper to load (decode or cache it beforehand)"
        )
    return f": {gain}"


def _loading_beside(seen: Symptoms, found: Diagnosis) -> str:
    """Name the workers that would hide loading where computing takes longer, but both are paid."""
    clocks = seen.clocks
    if found.bottleneck == "loading" or clocks is None:
        return ""
    if not loading_matters(clocks.load_seconds, clocks.step_seconds, clocks.total_seconds):
        return ""
    gain = _workers_gain(seen)
    share = _percent(1 - clocks.step_seconds / clocks.total_seconds)
    return f" Loading is {share} of what the loop pays: {gain}." if gain else ""


def _others(seen: Symptoms) -> list[WorkerPoint]:
    """What other numbers of workers were tried, beside the task's own."""
    tried = {worker.num_workers for worker in seen.workers}
    if seen.num_workers not in tried or seen.clocks is None:
        return []
    return [worker for worker in seen.workers if worker.num_workers != seen.num_workers]


def _workers_gain(seen: Symptoms) -> str:
    """Name the fewest workers with which the loop pays about the least; empty where none gain."""
    others, clocks = _others(seen), seen.clocks
    if not others or clocks is None:
        return ""
    step = clocks.step_seconds
    pays = {w.num_workers: max(w.load_seconds, step) for w in others if w.num_workers}
    least = min(pays.values(), default=math.inf)
    if least > _WORKERS_GAIN * clocks.total_seconds:
        return ""
    now = next(w for w in seen.workers if w.num_workers == seen.num_workers)
    best = next(w for w in others if pays.get(w.num_workers, math.inf) <= _NEAR * least)
    return (
        f"try num_workers={best.num_workers}, with which loading a batch of "
        f"{format_count(clocks.batch_size)} took {format_seconds(best.load_seconds)} instead of "
        f"{format_seconds(now.load_seconds)}, while a step of {format_seconds(step)} is computed"
    )


def _waiting(seen: Symptoms) -> Diagnosis | None:
    point = seen.judged
    if point.idle_share is None or point.idle_share < _IDLE:
        return None
    return Diagnosis(
        "sync",
        f"During {_percent(point.idle_share)} of a step of {format_seconds(point.step_seconds)} "
        f"at {_examples(point)} nothing ran: the step waits.",
        "Look for what it waits for (a collective with a slower rank, a lock, a file or the "
        "network inside the loss); fewer and larger steps wait less often.",
    )


def _padding(seen: Symptoms) -> Diagnosis | None:
    """Judge by what would be saved if the batch were as dense as the densest one measured."""
    point, fixed = seen.judged, seen.fixed_share
    known = [p for p in seen.points if p.units and p.elements]
    if point not in known:
        return None
    densest = max(known, key=_density)
    wasted = 1 - _density(point) / _density(densest)
    if wasted * (1 - (0.0 if fixed is None else fixed)) < _PADDED:
        return None
    return Diagnosis(
        "padding",
        f"A batch of {format_count(point.batch_size)} holds "
        f"{format_number(1 / _density(point), 3)} elements for each unit of the loss, one of "
        f"{format_count(densest.batch_size)} {format_number(1 / _density(densest), 3)}: at least "
        f"{_percent(wasted)} of it is padding.",
        "Batch examples of similar length together, or pack several into one row; then a larger "
        "batch can pay.",
    )


def _density(point: ThroughputPoint) -> float:
    """Units per element; of a point where both are known."""
    return (point.units or 0.0) / (point.elements or 1.0)


def _thrashing(seen: Symptoms) -> Diagnosis | None:
    point = seen.judged
    smaller = [p for p in seen.points if p.batch_size < point.batch_size]
    if not smaller:
        return None
    best = min(smaller, key=lambda p: p.high / _work(p))
    if point.low / _work(point) <= _THRASHING * best.high / _work(best):
        return None
    each, before = point.step_seconds / point.batch_size, best.step_seconds / best.batch_size
    size = format_count(best.batch_size)
    return Diagnosis(
        "thrashing",
        f"An example takes {format_seconds(each)} at {format_count(point.batch_size)} and "
        f"{format_seconds(before)} at {size}.",
        f"Pass {size} examples at a time and accumulate gradients for a larger batch: past that "
        "size caches or memory no longer suffice.",
    )


def _work(point: ThroughputPoint) -> float:
    """What the cost of a step is shared over: elements, padding included, where they are known."""
    return point.elements or float(point.batch_size)


def _overhead(seen: Symptoms) -> Diagnosis | None:
    point, fixed = seen.judged, seen.fixed_share
    if fixed is None or fixed < _FIXED:
        return None
    if seen.half_batch_size is None:
        first, last = seen.points[0], seen.points[-1]
        times = format_number(last.step_seconds / max(first.step_seconds, _TINY_SECONDS))
        evidence = (
            f"A step at {_examples(last)} takes {times} times as long as at "
            f"{format_count(first.batch_size)}: its cost is fixed."
        )
    else:
        evidence = (
            f"{_percent(fixed)} of a step of {format_seconds(point.step_seconds)} at "
            f"{_examples(point)} is fixed cost, whatever its size."
        )
    by_optimizer = seen.shares is not None and seen.shares.optimizer >= _OPTIMIZER
    if by_optimizer and seen.shares is not None:
        evidence = evidence[:-1] + f"; the optimizer takes {_percent(seen.shares.optimizer)}."
    cheaper = "a fused optimizer" if by_optimizer else "a compiled model with fewer operations"
    last = seen.points[-1]
    each = point.total_seconds / point.batch_size
    gain = each / max(last.total_seconds / last.batch_size, _TINY_SECONDS)
    if last is point or gain < 1 / _WORKERS_GAIN:
        return Diagnosis("overhead", evidence, f"Try a larger batch, or {cheaper}.")
    return Diagnosis(
        "overhead",
        evidence,
        f"Try a larger batch, up to {format_number(gain)} times the examples/s at "
        f"{format_count(last.batch_size)}, or {cheaper}.",
    )


def _compute(seen: Symptoms) -> Diagnosis | None:
    point, fixed = seen.judged, seen.fixed_share
    if fixed is None or fixed > _VARIABLE:
        return None
    return Diagnosis(
        "compute",
        f"{_percent(1 - fixed)} of a step of {format_seconds(point.step_seconds)} at "
        f"{_examples(point)} grows with its size.",
        "A larger batch is hardly faster per example: try a lower precision, a compiled model or "
        "more devices.",
    )


def _mixed(seen: Symptoms) -> Diagnosis:
    point, fixed = seen.judged, seen.fixed_share
    if fixed is None:
        many = len(seen.points) > 1
        evidence = "The sizes cannot be told apart." if many else "Only one size was measured."
        return Diagnosis("mixed", evidence, "Measure more sizes, or give it more time.")
    return Diagnosis(
        "mixed",
        f"{_percent(fixed)} of a step of {format_seconds(point.step_seconds)} at "
        f"{_examples(point)} is fixed cost, the rest grows with its size.",
        f"A larger batch is at most {format_number(1 / (1 - fixed))} times as fast per example.",
    )


def _examples(point: ThroughputPoint) -> str:
    return f"{format_count(point.batch_size)} examples"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
