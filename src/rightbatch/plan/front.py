"""The front of time against cost, and energy, and which of its points each objective takes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rightbatch.plan.limits import RunLength, run_length
from rightbatch.plan.options import PlanOptions
from rightbatch.plan.weigh import TIE, Weighed, choose_size, near_least
from rightbatch.results import Candidate, FrontPoint


@dataclass(frozen=True, slots=True)
class Front:
    """Ways that no other beats in all that they are judged by, and what becomes of each."""

    indices: tuple[int, ...]  # of the ways, the cheapest first
    tied: dict[int, list[int]]  # index -> round sizes that cannot be told from its size
    dominated: tuple[int, ...]  # device counts whose best ways others beat
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
    """Keep the best sizes for each number of devices, as far as no other beats them in all.

    On a fixed number of devices cost is proportional to time, so one size stands for both: the
    smallest, roundest within 5 % of the fastest. Joules are not: where they are the objective, the
    size of the least energy comes beside it. Where deadline and budget can be judged, and some
    sizes keep them, both are chosen among those alone.

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
    usable = {d: weighed.keeping(d, allowed) for d in options.devices if weighed.where(d).any()}
    tied: dict[int, list[int]] = {}
    for judge in ("energy", "time") if options.objective == "energy" else ("time",):
        for ways in usable.values():
            index, ties = choose_size(weighed, ways, judge)
            tied.setdefault(index, ties)
    everyone = np.flatnonzero(np.any(list(usable.values()), axis=0))
    points = {int(i): _coordinates(candidates[i], options) for i in everyone}
    indices, taken = _keep_front(weighed, list(tied), points, options)
    left = {weighed.ways[i].devices for i in indices}
    return Front(
        indices=tuple(indices),
        tied=tied,
        dominated=tuple(d for d in usable if d not in left),
        lengths=lengths,
        taken=taken,
        chosen=_within_limits(weighed, indices, lengths, options),
        unlimited=taken[options.objective],
        keeping=allowed,
    )


def _keep_front(
    weighed: Weighed,
    rivals: list[int],
    points: dict[int, tuple[float, ...]],
    options: PlanOptions,
) -> tuple[list[int], dict[str, int]]:
    """Drop rivals that another equals or beats, or any way at all by more than a tie.

    What an objective takes stays: under doubt it is the least on average, and may be beaten at the
    middle of the intervals.
    """
    kept = not_dominated([points[i] for i in rivals])
    indices = sorted((rivals[k] for k in kept), key=lambda i: points[i][1])  # by cost
    objectives = dict.fromkeys(("time", "cost", options.objective))
    taken = {objective: _take(weighed, indices, objective) for objective in objectives}
    with_tie = (1 + TIE) * np.array(list(points.values()))  # [ways, coordinates]
    beaten = {i for i in indices if (with_tie < points[i]).all(axis=1).any()}
    return [i for i in indices if i not in beaten or i in taken.values()], taken


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
    among = np.isin(np.arange(len(weighed.ways)), indices)
    near = near_least(weighed, among, objective)
    return min((i for i in indices if near[i]), key=lambda i: weighed.ways[i].devices)


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
    cost_low, cost, cost_high = length.cost or (None, None, None)
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
        cost=cost,
        cost_low=cost_low,
        cost_high=cost_high,
        meets_limits=length.meets_limits,
        counted_at=length.counted_at,
        steps_allowed=steps,
        steps_allowed_low=least,
        steps_allowed_high=most,
        relative_energy=candidate.relative_energy,
    )
