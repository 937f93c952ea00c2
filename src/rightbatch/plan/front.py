"""The front of time against cost, and which of its points each objective takes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rightbatch.plan.limits import RunLength, run_length
from rightbatch.plan.options import PlanOptions
from rightbatch.plan.weigh import TIE, Weighed, choose_size
from rightbatch.results import Candidate, FrontPoint


@dataclass(frozen=True, slots=True)
class Front:
    """Ways that no other beats in both time and cost, and what becomes of each."""

    indices: tuple[int, ...]  # of the ways, the cheapest first
    tied: dict[int, list[int]]  # index -> round sizes that cannot be told from its size
    dominated: tuple[int, ...]  # device counts whose best way another one beats
    lengths: dict[int, RunLength]  # index -> what the whole run takes
    taken: dict[str, int]  # objective -> index, of all points
    chosen: int
    unlimited: int  # what would be chosen without deadline and budget
    keeping: NDArray[np.bool_]  # ways that keep both, or that cannot be judged


def find_front(
    weighed: Weighed,
    candidates: tuple[Candidate, ...],
    options: PlanOptions,
    today: int | None,
) -> Front:
    """Keep the best size for each number of devices, as far as no other beats it in both.

    On a fixed number of devices cost is proportional to time, so one size stands for it: the
    smallest, roundest within 5 % of the fastest. Where deadline and budget can be judged, and some
    sizes keep them, it is chosen among those alone.

    Args:
        weighed: Ways.
        candidates: The same ways with their numbers.
        options: Objective and limits.
        today: Today's batch size, if known.
    """
    lengths = {i: run_length(weighed, i, options, today) for i in range(len(weighed.ways))}
    keeping = np.array([length.meets_limits is not False for length in lengths.values()])
    front = _front_among(weighed, candidates, options, lengths, keeping)
    if keeping.all():
        return front
    free = _front_among(weighed, candidates, options, lengths, np.ones_like(keeping))
    return replace(front, unlimited=free.unlimited)


def _front_among(
    weighed: Weighed,
    candidates: tuple[Candidate, ...],
    options: PlanOptions,
    lengths: dict[int, RunLength],
    allowed: NDArray[np.bool_],
) -> Front:
    counts = [d for d in options.devices if weighed.where(d).any()]
    best = {d: choose_size(weighed, weighed.keeping(d, allowed)) for d in counts}
    rivals = [index for index, _ in best.values()]
    kept = not_dominated([_coordinates(candidates[i], options) for i in rivals])
    indices = sorted((rivals[k] for k in kept), key=lambda i: candidates[i].relative_cost)
    objectives = dict.fromkeys(("time", "cost", options.objective))
    taken = {objective: _take(weighed, indices, objective) for objective in objectives}
    return Front(
        indices=tuple(indices),
        tied=dict(best.values()),
        dominated=tuple(d for d, (index, _) in best.items() if index not in indices),
        lengths=lengths,
        taken=taken,
        chosen=_within_limits(weighed, indices, lengths, options),
        unlimited=taken[options.objective],
        keeping=allowed,
    )


def _coordinates(candidate: Candidate, options: PlanOptions) -> tuple[float, ...]:
    """What a point of the front is judged by; joules where they are the objective."""
    two = (candidate.relative_time, candidate.relative_cost)
    if options.objective != "energy" or candidate.relative_energy is None:
        return two
    return (*two, candidate.relative_energy)


def not_dominated(points: Sequence[tuple[float, ...]]) -> list[int]:
    """Indices of the points that no other one equals or beats in all; of equals the first.

    Example:
        >>> not_dominated([(1.0, 4.0), (2.0, 2.0), (3.0, 3.0), (4.0, 1.0), (2.0, 2.0)])
        [0, 1, 3]
    """

    def beaten(i: int) -> bool:
        return any(
            all(rival <= own for rival, own in zip(points[j], points[i], strict=True))
            and (points[j] != points[i] or j < i)
            for j in range(len(points))
        )

    return [i for i in range(len(points)) if not beaten(i)]


def _take(weighed: Weighed, indices: list[int], objective: str) -> int:
    """Of the points within 5 % of the least, the one with the fewest devices.

    Fewer devices cost less where the times are the same, and take a smaller batch where the
    costs are.
    """
    amounts = weighed.times[:, indices]
    if objective == "cost":
        amounts = amounts * weighed.devices[indices]
    if objective == "energy":
        amounts = weighed.amounts[:, indices]
    expected = (amounts / amounts.min(axis=1)[:, None]).mean(axis=0)
    near = np.flatnonzero(expected <= (1 + TIE) * expected.min())
    return min((indices[k] for k in near), key=lambda i: weighed.ways[i].devices)


def _within_limits(
    weighed: Weighed, indices: list[int], lengths: dict[int, RunLength], options: PlanOptions
) -> int:
    """Take the objective's point among those that keep the limits, or the one that misses least."""
    missed_by = {i: lengths[i].over_limit for i in indices}
    keeping = [i for i in indices if (missed_by[i] or 0.0) <= 1.0]
    if keeping:
        return _take(weighed, keeping, options.objective)
    return min(indices, key=lambda i: missed_by[i] or 0.0)


def front_points(
    weighed: Weighed, front: Front, candidates: tuple[Candidate, ...]
) -> tuple[FrontPoint, ...]:
    """Write the front as results, the cheapest first."""
    return tuple(front_point(weighed, front, candidates, i) for i in front.indices)


def front_point(
    weighed: Weighed, front: Front, candidates: tuple[Candidate, ...], index: int
) -> FrontPoint:
    """Write one way as a point, whether on the front or not."""
    candidate, devices = candidates[index], weighed.ways[index].devices
    length = front.lengths[index]
    low, middle, high = length.seconds or (None, None, None)
    least, steps, most = length.steps_allowed or (None, None, None)
    return FrontPoint(
        batch_size=candidate.batch_size,
        micro_batch_size=candidate.micro_batch_size,
        accumulation_steps=candidate.accumulation_steps,
        devices=devices,
        relative_time=candidate.relative_time,
        relative_cost=candidate.relative_cost,
        assumed=candidate.assumed,
        taken_for=tuple(name for name, taken in front.taken.items() if taken == index),
        seconds=middle,
        seconds_low=low,
        seconds_high=high,
        cost=length.cost,
        meets_limits=length.meets_limits,
        counted_at=length.counted_at,
        steps_allowed=steps,
        steps_allowed_low=least,
        steps_allowed_high=most,
        relative_energy=candidate.relative_energy,
    )
