"""Find the largest batch that fits, by trying few sizes and returning only sizes that ran.

Peak memory is the largest, over all points of the program, of something linear in the
batch size, ``peak(b) = max_t (a_t + c_t b)`` with ``a_t >= 0``. It is therefore convex, and

* beyond two measured sizes the line through them is a lower bound of the peak, which
  bounds the feasible size from above;
* between two measured sizes their chord is an upper bound;
* ``peak(k b) <= k peak(b)``, which bounds how far a larger try can overshoot.

A probe is any callable, so that a prediction may stand in for an execution.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from rightbatch.results import MemoryPoint, MemoryProfile, Status

_GROWTH = 4
_AIM = 0.9  # of the way to the bound: the bound itself is feasible only on a straight line
_PRECISION = 0.02  # of the batch size
_NEARLY_FULL = 0.95  # of the budget; then a coarser precision is good enough
_COARSE_PRECISION = 0.1
_APART = 0.75  # two sizes of a secant; closer together, it would follow the noise of the peaks
_TOO_SLOW = ("slow", "hang")
_TOO_LARGE = ("oom", "over_budget", "limit", "killed", "thrash")
_SURELY_FITS = 0.8  # of the budget, by `peak(k b) <= k peak(b)`


@final
@dataclass(frozen=True, slots=True)
class ProbeOutcome:
    """What trying one batch size gave."""

    outcome: str  # see `MemoryPoint`
    peak_bytes: int | None  # None where it did not finish
    source: str = "real"  # or "fake": predicted, not executed


Probe = Callable[[int], ProbeOutcome]


def search(
    probe: Probe,
    *,
    cap: int,
    first: int,
    budget_bytes: int,
    may_start: Callable[[int], bool] = lambda size: True,
    floor: int = 1,
    overshoot: float = math.inf,
) -> MemoryProfile:
    """Search the largest batch size whose peak stays within a budget.

    Args:
        probe: Tries one batch size. Called about 7 times on a convex curve.
        cap: No size above is ever tried.
        first: Size of the first try, halved while it fails.
        budget_bytes: On the scale of the probe's peaks.
        may_start: Asked before every try but the first, whether there is time for it.
        floor: The smallest size to try.
        overshoot: Never try a size that could peak above this multiple of the budget.

    Returns:
        The largest size that was executed within the budget, with all tries. ``upper_bound``
        holds on a convex curve. The status is ``OK`` within 2 % of the bound (10 % when at
        least 95 % of the budget is used), ``CAPPED`` when the cap itself ran, and ``LEAK`` after
        a try that leaked: it is the last.

    Example:
        >>> def probe(size: int) -> ProbeOutcome:
        ...     return ProbeOutcome("ok", 100 + 3 * size)
        >>> profile = search(probe, cap=1000, first=8, budget_bytes=220)
        >>> profile.max_verified_batch_size, profile.upper_bound
        (40, 40)
    """
    points: list[MemoryPoint] = []

    def run(size: int) -> MemoryPoint:
        result = probe(size)
        outcome = result.outcome
        if outcome == "ok" and result.peak_bytes is not None and result.peak_bytes > budget_bytes:
            outcome = "over_budget"
        points.append(
            MemoryPoint(
                batch_size=size,
                peak_bytes=result.peak_bytes,
                source=result.source,
                outcome=outcome,
            )
        )
        return points[-1]

    status = _descend(run, min(first, cap), floor, may_start)
    while status is None and (status := _settled(points, cap, budget_bytes)) is None:
        size = _next_size(points, cap, budget_bytes, overshoot)
        verified = _largest_ok(points).batch_size
        while size > verified and not may_start(size):
            size = size // 2
        outcome = run(size).outcome if size > verified else "slow"
        if outcome == "leak":
            status = Status.LEAK
        elif outcome in _TOO_SLOW:
            status = Status.OUT_OF_TIME
    return MemoryProfile(
        max_verified_batch_size=max((p.batch_size for p in points if p.outcome == "ok"), default=0),
        upper_bound=memory_bound(points, budget_bytes),
        budget_bytes=budget_bytes,
        points=tuple(points),
        status=status,
    )


def _descend(
    run: Callable[[int], MemoryPoint], size: int, floor: int, may_start: Callable[[int], bool]
) -> Status | None:
    """Halve until a size fits; return why the search ends here, or ``None`` to go on."""
    was_slow = False
    while (point := run(size)).outcome != "ok":
        if point.outcome == "leak":
            return Status.LEAK
        was_slow = was_slow or point.outcome in _TOO_SLOW
        if size <= floor:
            return Status.OUT_OF_TIME if was_slow else Status.NOTHING_FITS
        size = max(floor, size // 2)
        if not may_start(size):
            return Status.OUT_OF_TIME
    return Status.OUT_OF_TIME if was_slow else None


def _settled(points: Sequence[MemoryPoint], cap: int, budget_bytes: int) -> Status | None:
    verified = _largest_ok(points)
    if verified.batch_size >= cap:
        return Status.CAPPED
    bound = memory_bound(points, budget_bytes)
    if bound is None or bound >= cap:
        return None
    full = _peak(verified) >= _NEARLY_FULL * budget_bytes
    precision = _COARSE_PRECISION if full else _PRECISION
    gap = bound - verified.batch_size
    return Status.OK if gap <= max(1, precision * verified.batch_size) else None


def _next_size(points: Sequence[MemoryPoint], cap: int, budget_bytes: int, overshoot: float) -> int:
    """Choose where to try next: far enough to learn, not so far that it surely fails."""
    verified = _largest_ok(points)
    size, peak = verified.batch_size, _peak(verified)
    growth = _GROWTH * size
    if peak > 0 and math.isfinite(overshoot):
        growth = min(growth, int(size * overshoot * budget_bytes / peak))
    bound = memory_bound(points, budget_bytes)
    failed = _smallest_failure(points, budget_bytes)
    if bound is None or bound >= cap:
        aim = cap
    elif failed is None or failed.batch_size - 1 > bound:
        aim = size + math.ceil(_AIM * (bound - size))
    elif failed.peak_bytes is not None:  # where the chord crosses the budget
        rise = failed.peak_bytes - peak
        aim = size + (budget_bytes - peak) * (failed.batch_size - size) // rise
    else:
        aim = size + math.ceil((bound - size) / 2)
    chosen = max(size + 1, min(growth, aim, cap))
    failed_before = {p.batch_size for p in points if p.outcome != "ok"}
    while chosen in failed_before and chosen > size + 1:  # not believed, so ask its neighbour
        chosen = (size + chosen) // 2
    return chosen


def _largest_ok(points: Sequence[MemoryPoint]) -> MemoryPoint:
    return max((p for p in points if p.outcome == "ok"), key=lambda p: p.batch_size)


def _peak(point: MemoryPoint) -> int:
    return point.peak_bytes or 0


def memory_bound(points: Sequence[MemoryPoint], budget_bytes: int) -> int | None:
    """Return the size above which nothing can fit, as far as the points tell."""
    failed = _smallest_failure(points, budget_bytes)
    bounds = [] if failed is None else [failed.batch_size - 1]
    fitting = sorted((p for p in points if p.outcome == "ok"), key=lambda p: p.batch_size)
    apart = [p for p in fitting if p.batch_size <= _APART * fitting[-1].batch_size]
    if apart:
        before, last = apart[-1], fitting[-1]
        rise = _peak(last) - _peak(before)
        if rise > 0:
            run = last.batch_size - before.batch_size
            bounds.append(last.batch_size + (budget_bytes - _peak(last)) * run // rise)
    return min(bounds, default=None)


def _smallest_failure(points: Sequence[MemoryPoint], budget_bytes: int) -> MemoryPoint | None:
    """Return the smallest size above the verified one whose failure is to be believed.

    A single failure where convexity says that there is room came from elsewhere (another
    process, one algorithm's workspace), so it takes a second one at or below that size.
    """
    fitting = [p for p in points if p.outcome == "ok"]
    failures = [p for p in points if p.outcome in _TOO_LARGE]
    if not fitting:
        return min(failures, key=lambda p: p.batch_size, default=None)
    verified = _largest_ok(points)
    believed = []
    for point in failures:
        if point.batch_size <= verified.batch_size:
            continue
        at_most = _peak(verified) * point.batch_size / verified.batch_size
        surprising = point.outcome == "oom" and at_most <= _SURELY_FITS * budget_bytes
        repeated = sum(p.batch_size <= point.batch_size for p in failures) >= 2
        if repeated or not surprising:
            believed.append(point)
    return min(believed, key=lambda p: p.batch_size, default=None)
