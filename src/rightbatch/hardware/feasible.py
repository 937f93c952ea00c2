"""Predict first: search among predicted peaks, and execute one to three sizes to be certain.

    predicted   live bytes, exact, at any size in well under a second, nothing executed
    real        predicted x what an allocator, its caches and kernels' workspaces add

What is alive must be in memory, so a size whose prediction exceeds the budget cannot fit: that
bounds the answer from above before anything ran. Only a size that ran is ever returned.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import final

from rightbatch.hardware.search import Probe
from rightbatch.results import MemoryPoint, MemoryProfile, Status

_OVERHEAD = 1.35  # real over predicted, until the first real peak says otherwise
_LEAST_OVERHEAD = 1.2  # of the smallest size
_WORSE = 1.3  # times what may be used: the peak of a size that failed, where it is not known ...
_BETWEEN = 1.1  # ... and where a smaller size fits
_LEAST_SLOPE = 1.0  # real bytes for a predicted byte more: what is alive is in memory
_MOST_SLOPE = 4.0  # two peaks close together would follow the noise of a heap
_AIM = 0.97  # of what may be used
_CLOSE = 0.05  # of a batch size: not worth another try
_BOLD = 1.1  # times the only size that ran, and full by its peak: where another try goes, since
# large tensors come from the system and go back there, so that larger sizes may take even less
_MOST_PROBES = 3
_HALF = 0.5
_MOST_FAILURES = 5  # in a row, with nothing verified

Predict = Callable[[int], int]


def largest_within(predict: Predict, cap: int, budget_bytes: int, floor: int = 1) -> int:
    """Find the largest size whose predicted peak stays within a budget, or 0.

    Predictions are convex in the size, so the chord between a size that fits and one that does not
    crosses the budget at a size that fits, and the line through two that fit at one that bounds
    the answer.

    Args:
        predict: Peak bytes at a size; never falling.
        cap: The largest size to consider.
        budget_bytes: On the scale of the predictions.
        floor: The smallest size that can be predicted; with BatchNorm a step needs two examples.

    Example:
        >>> largest_within(lambda size: max(50, 3 * size), 1000, 100)
        33
    """
    if cap < floor or predict(floor) > budget_bytes:
        return 0
    low, high = floor, min(2 * floor, cap)
    while predict(high) <= budget_bytes:
        if high >= cap:
            return cap
        low, high = high, min(4 * high, cap)
    while high - low > 1:
        below, above = predict(low), predict(high)
        chord = low + (budget_bytes - below) * (high - low) // max(1, above - below)
        # From below the chord creeps where the curve bends, so a step is an eighth at least.
        middle = min(max(chord, low + max(1, (high - low) // 8)), high - 1)
        if predict(middle) <= budget_bytes:
            low = middle
            if middle == chord and middle + 1 < high and predict(middle + 1) > budget_bytes:
                high = middle + 1  # a straight line ends here
        else:
            high = middle
    return low


@final
@dataclass(slots=True)
class _Search:
    """What is known so far."""

    predict: Predict
    cap: int
    budget_bytes: int
    points: list[MemoryPoint] = field(default_factory=list[MemoryPoint])
    floor: int = 1
    spare: float = 0.0
    refused_bytes: int = 0

    @property
    def usable_bytes(self) -> int:
        """The budget without what is kept free."""
        return int((1 - self.spare) * self.budget_bytes)

    def verified(self) -> MemoryPoint | None:
        fitting = [point for point in self.points if point.outcome == "ok"]
        return max(fitting, key=lambda point: point.batch_size, default=None)

    def failed(self) -> int | None:
        """Return the smallest size that ran and does not fit."""
        sizes = [p.batch_size for p in self.points if p.outcome != "ok"]
        return min(sizes, default=None)

    def next_size(self, floor: int) -> int:
        """Choose the size whose real peak is expected to nearly fill what may be used."""
        failed, best = self.failed(), self.verified()
        size = min(self._expected(floor), self.cap)
        if failed is not None and size >= failed:
            size = failed // 2 if best is None else (best.batch_size + failed) // 2
        return max(size, floor)

    def _expected(self, floor: int) -> int:
        aim = _AIM * self.usable_bytes
        peaks = sorted((p.batch_size, self._peak_of(p)) for p in self.points)
        below = [pair for pair in peaks if pair[1] <= aim]
        above = [pair for pair in peaks if pair[1] > aim]
        if below:
            return self._along(below, above[:1], aim)
        least = _LEAST_OVERHEAD * self.predict(floor)
        if not above or least >= aim:
            return largest_within(self.predict, self.cap, int(aim / _OVERHEAD), self.floor)
        # Real peaks are convex: below the chord from what the smallest size takes at least.
        size, peak = above[0]
        return floor + int((size - floor) * (aim - least) / (peak - least))

    def _peak_of(self, point: MemoryPoint) -> int:
        """Return the peak of a try, or what to assume of one that failed without a telling one."""
        peak = point.peak_bytes or 0
        if point.outcome == "ok" or peak >= self.usable_bytes:
            return peak
        if point.outcome == "oom" and self.refused_bytes > self.usable_bytes:
            return self.refused_bytes
        beyond = _WORSE if self.verified() is None else _BETWEEN
        return max(peak, int(beyond * self.usable_bytes))

    def _along(self, below: list[tuple[int, int]], above: list[tuple[int, int]], aim: float) -> int:
        """Follow the line through the two nearest peaks, or go on in proportion to one."""
        size, peak = below[-1]
        predicted = self.predict(size)
        slope = peak / max(1, predicted)
        for other_size, other_peak in above or below[-2:-1]:
            if (other := self.predict(other_size)) != predicted:
                slope = (other_peak - peak) / (other - predicted)
        slope = min(max(slope, _LEAST_SLOPE), _MOST_SLOPE)
        usable = int(predicted + (aim - peak) / slope)
        return largest_within(self.predict, self.cap, usable, self.floor)


def search_predicted(
    predict: Predict,
    probe: Probe,
    *,
    cap: int,
    budget_bytes: int,
    floor: int = 1,
    spare: float = 0.0,
    refused_bytes: int = 0,
    may_start: Callable[[int], bool] = lambda size: True,
) -> MemoryProfile:
    """Find the largest size that fits: predicted first, then executed.

    Args:
        predict: A lower bound of the real peak at a size, in bytes.
        probe: Executes one size; called one to three times where predictions are within a
            factor of 1.5.
        cap: No size above is tried.
        budget_bytes: On the scale of both.
        floor: The smallest size to try.
        spare: Share of the budget that what runs must leave free.
        refused_bytes: What a try takes at least that ran out of memory without a peak. By default
            no more is known than that it takes more than the budget.
        may_start: Asked before every try, whether there is time for it.

    Returns:
        The largest size that ran within the budget. ``upper_bound`` holds for any task whose
        predictions are right. The status is ``NOTHING_FITS``, ``CAPPED``, ``OUT_OF_TIME``,
        ``LEAK`` (which ends the search, since every size would run out in the end) or ``OK``.

    Example:
        Real memory is a fifth more than predicted, and 100 bytes:

        >>> from rightbatch.hardware.search import ProbeOutcome
        >>> profile = search_predicted(
        ...     lambda size: 10 * size,
        ...     lambda size: ProbeOutcome("ok", 100 + 12 * size),
        ...     cap=10_000, budget_bytes=12_100)
        >>> profile.max_verified_batch_size, profile.upper_bound  # of 1,000 at most
        (968, 1210)
    """
    search = _Search(
        predict, cap, budget_bytes, floor=floor, spare=spare, refused_bytes=refused_bytes
    )
    bound = largest_within(predict, cap, budget_bytes, floor)
    if bound < floor:
        return _nothing_fits(search, floor, ())
    search.cap = bound
    status = _probe(search, probe, floor, may_start)
    fitting = search.verified()
    if fitting is None and status not in (Status.OUT_OF_TIME, Status.LEAK):
        return _nothing_fits(search, floor, search.points)
    size = fitting.batch_size if fitting else 0
    if size >= cap:
        status = Status.CAPPED
    return MemoryProfile(
        max_verified_batch_size=size,
        # Tries that failed bound nothing for certain: a larger size may take less heap.
        upper_bound=None if bound >= cap and search.failed() is None else bound,
        budget_bytes=budget_bytes,
        points=_with_predictions(search, bound, cap),
        status=status,
    )


def _probe(search: _Search, probe: Probe, floor: int, may_start: Callable[[int], bool]) -> Status:
    """Execute sizes until one nearly fills the budget, or is as large as can be."""
    status = Status.OK
    size = search.next_size(floor)
    for tried in range(1, _MOST_PROBES + _MOST_FAILURES):
        if not may_start(size):
            return Status.OUT_OF_TIME
        result = probe(size)
        outcome = result.outcome
        if outcome == "ok" and (result.peak_bytes or 0) > search.budget_bytes:
            outcome = "over_budget"  # what is spare is for the probe to keep: peaks are no limits
        search.points.append(
            MemoryPoint(
                batch_size=size,
                peak_bytes=result.peak_bytes,
                source=result.source,
                outcome=outcome,
            )
        )
        if outcome == "leak":
            return Status.LEAK
        if outcome in ("slow", "hang"):
            status = Status.OUT_OF_TIME
            search.cap = min(search.cap, max(floor, size // 4))
        best = search.verified()
        if best is None and size <= floor:
            return Status.OUT_OF_TIME if status is Status.OUT_OF_TIME else Status.NOTHING_FITS
        if best is not None and (_is_all(search, best) or tried >= _most(search, best)):
            return status
        following = search.next_size(floor)
        if best is not None and following - best.batch_size <= _CLOSE * best.batch_size:
            following = (best.batch_size + _room(search)) // 2
            if tried > 1 or following < _BOLD * best.batch_size:
                return status
        size = following
    return status


def _most(search: _Search, best: MemoryPoint) -> int:
    """Three tries, or one more where the largest that ran is far from the smallest that did not."""
    return _MOST_PROBES + (best.batch_size < _HALF * _room(search))


def _is_all(search: _Search, best: MemoryPoint) -> bool:
    return best.batch_size >= _room(search)


def _room(search: _Search) -> int:
    """Return the largest size that is not known to be too large."""
    return min((search.failed() or search.cap + 1) - 1, search.cap)


def _with_predictions(search: _Search, bound: int, cap: int) -> tuple[MemoryPoint, ...]:
    """Put what was predicted beside what was executed: of the same sizes, and at the bound."""
    sizes = {point.batch_size for point in search.points} | {bound}
    if bound < cap:
        sizes.add(bound + 1)
    predicted = [
        MemoryPoint(
            batch_size=size,
            peak_bytes=search.predict(size),
            source="fake",
            outcome="ok" if search.predict(size) <= search.budget_bytes else "over_budget",
        )
        for size in sorted(sizes)
    ]
    return (*predicted, *search.points)


def _nothing_fits(search: _Search, floor: int, points: Sequence[MemoryPoint]) -> MemoryProfile:
    predicted = MemoryPoint(
        batch_size=floor,
        peak_bytes=search.predict(floor),
        source="fake",
        outcome="ok" if search.predict(floor) <= search.budget_bytes else "over_budget",
    )
    return MemoryProfile(
        max_verified_batch_size=0,
        upper_bound=floor - 1,
        budget_bytes=search.budget_bytes,
        points=(predicted, *points),
        status=Status.NOTHING_FITS,
    )
