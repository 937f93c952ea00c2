"""How a race is judged, as pure functions of the contenders' held-out losses.

A contender is not judged by its last loss but by the mean logarithm of its held-out loss over
marks that are evenly spaced in log(steps), from an eighth of its steps on. One number at the end
favours small rates once the loss has settled, for they have the lowest floor. Trials on digits
(an MLP and a CNN; SGD and Adam; batches of 16, 64 and 256): the rate judged best needed 1.1 times
the fewest steps to 97 % accuracy, whether the race was as long as that training or four times;
by the last loss it needed 1.1 times and 1.5 times.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

_WINDOW = 8  # a run of n steps is judged by the marks from n/8 on
_NEAR = 0.03  # of the way down is as good as there


@dataclass(frozen=True, slots=True)
class Mark:
    """Held-out losses of one contender at one step."""

    step: int
    losses: tuple[float, ...]  # of each held-out batch


Track = Sequence[Mark]  # ascending in step
Weights = Sequence[float]  # units of each held-out batch


def mean_loss(mark: Mark, weights: Weights) -> float:
    """Return the mean loss per unit.

    Example:
        >>> mean_loss(Mark(10, (1.0, 4.0)), [2.0, 1.0])
        2.0
    """
    return float(np.average(mark.losses, weights=weights))


def loss_interval(mark: Mark, weights: Weights) -> tuple[float, float]:
    """Return the 95 % interval of the mean loss, over the draw of the held-out batches."""
    mean = mean_loss(mark, weights)
    reach = _quantile(len(weights)) * _error_over_batches(np.asarray(mark.losses), weights)
    return mean - reach, mean + reach


def scores(tracks: Sequence[Track], horizon: int, weights: Weights) -> list[float]:
    """Return how well each run has done by ``horizon`` steps; smaller is better.

    The mean of log(loss) over the marks from an eighth of the horizon on. Where any loss is not
    positive (a log-likelihood of densities) it is the mean of the losses themselves.

    Example:
        >>> track = [Mark(0, (9.0,)), Mark(1, (9.0,)), Mark(5, (math.e,)), Mark(10, (1.0,))]
        >>> scores([track], 10, [1.0])
        [0.5]
    """
    values = _values(tracks, horizon, weights)
    return [float(np.average(value.mean(0), weights=weights)) for value in values]


def compare(
    ours: Sequence[Track], theirs: Sequence[Track], horizon: int, weights: Weights
) -> tuple[float, float]:
    """Return the difference of two rates' scores, and half of its 95 % interval.

    Both saw the same batches in every lap and are judged by the same ones, so most of the noise
    cancels. What is left has two sources: which batches were held out, and when one looked.

    Args:
        ours: One track per lap.
        theirs: As many, of the same laps.
        horizon: Steps to judge at.
        weights: Of the held-out batches.

    Example:
        >>> ours, theirs = [Mark(8, (1.0, 1.0))], [Mark(8, (math.e, math.e))]
        >>> compare([ours], [theirs], 8, [1.0, 1.0])
        (-1.0, 0.0)
    """
    differences, variances = [], []
    for our, their in zip(ours, theirs, strict=True):
        our_values, their_values = _values([our, their], horizon, weights)
        gap = our_values - their_values
        by_time = np.average(gap, axis=1, weights=weights)
        differences.append(float(by_time.mean()))
        over_time = float(by_time.var(ddof=1)) / len(by_time) if len(by_time) > 1 else 0.0
        variances.append(_error_over_batches(gap.mean(0), weights) ** 2 + over_time)
    laps = len(differences)
    variance = sum(variances) / laps**2
    if laps > 1:
        variance = max(variance, float(np.var(differences, ddof=1)) / laps)
    return float(np.mean(differences)), _quantile(len(weights)) * math.sqrt(variance)


def settling(tracks: Iterable[Track], weights: Weights) -> float:
    """Return how many times longer the race has run than its leader needed to get near the bottom.

    Near is within 3 % of the way from the start's loss to the lowest that anybody reached. A
    race that still makes headway gives about 1, one that has settled 3 and more.

    Example:
        >>> losses = [10.0, 5.0, 1.0, 0.9, 0.8, 0.8]
        >>> settling([[Mark(4 * i, (x, x)) for i, x in enumerate(losses)]], [1.0, 1.0])
        2.5
    """
    marks = [mark for track in tracks for mark in track]
    start = min(marks, key=lambda mark: mark.step)
    lowest = min(marks, key=lambda mark: mean_loss(mark, weights))
    fall = mean_loss(start, weights) - mean_loss(lowest, weights)
    gap = np.subtract(start.losses, lowest.losses)
    if fall <= _quantile(len(weights)) * _error_over_batches(gap, weights):
        return 1.0  # nothing has moved yet that could settle
    near = mean_loss(lowest, weights) + _NEAR * fall
    arrival = min(mark.step for mark in marks if mean_loss(mark, weights) <= near)
    return max(mark.step for mark in marks) / max(arrival, 1)


def survivor_counts(count: int, eta: int) -> list[int]:
    """Return how many contenders run in each rung, down to two.

    Example:
        >>> survivor_counts(6, 2), survivor_counts(7, 3)
        ([6, 3, 2], [7, 3, 2])
    """
    counts = [count]
    while counts[-1] > 2:
        counts.append(max(2, -(-counts[-1] // eta)))
    return counts


def affordable_steps(
    seconds: float,
    counts: Sequence[int],
    *,
    first: bool,
    eta: int,
    load_seconds: float,
    step_seconds: float,
) -> int:
    """Return for how many steps this rung can run, so that the later ones fit too.

    Every rung ends ``eta`` times further from the start than the one before. Contenders share
    each batch that is loaded.

    Args:
        seconds: For all of these rungs.
        counts: Contenders in this and the later rungs.
        first: Whether this rung begins at the start.
        eta: Growth of the horizon, at least 2.
        load_seconds: Per batch.
        step_seconds: Per step of one contender.

    Example:
        With 4 contenders for n steps and 2 for n more, 60 steps of a second buy n = 10:

        >>> affordable_steps(
        ...     60.0, [4, 2], first=True, eta=2, load_seconds=0.0, step_seconds=1.0
        ... )
        10
    """
    total, stretch = 0.0, 1.0
    for index, count in enumerate(counts):
        total += stretch * (load_seconds + count * step_seconds)
        stretch *= eta - 1 if first and index == 0 else eta
    return max(0, math.floor(seconds / total))


def rate_grid(top: float, count: int, *, factor: float = 2.0) -> tuple[float, ...]:
    """Return ``count`` ascending rates up to ``top``, each ``factor`` times the one below.

    Example:
        >>> rate_grid(0.8, 3)
        (0.2, 0.4, 0.8)
    """
    return tuple(top / factor**power for power in reversed(range(count)))


def _values(tracks: Sequence[Track], horizon: int, weights: Weights) -> list[NDArray[np.float64]]:
    """Return [marks, batches] per track: numbers whose mean over batches is the log mean loss.

    Only steps at which every track has a mark take part: the loss at a step depends on the step.
    log(mean) is replaced by its tangent at the mean, which is linear in the batches' losses, so
    that its doubt can be had from their scatter.
    """
    shared = set.intersection(*({mark.step for mark in track} for track in tracks))
    steps = {step for step in shared if horizon <= _WINDOW * step and step <= horizon}
    losses = [np.array([mark.losses for mark in track if mark.step in steps]) for track in tracks]
    means = [np.average(loss, axis=1, weights=weights)[:, None] for loss in losses]
    if not all((mean > 0).all() for mean in means):
        return losses
    return [np.log(mean) + (loss - mean) / mean for loss, mean in zip(losses, means, strict=True)]


def _error_over_batches(values: NDArray[np.float64], weights: Weights) -> float:
    """Return the standard error of a weighted mean over held-out batches."""
    count = len(weights)
    if count < 2:
        return 0.0
    mean = np.average(values, weights=weights)
    spread = np.square(np.multiply(weights, values - mean)).sum() * count / (count - 1)
    return float(np.sqrt(spread) / np.sum(weights))


def _quantile(count: int) -> float:
    return float(stats.t.ppf(0.975, max(1, count - 1)))
