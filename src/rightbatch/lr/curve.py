"""What a range test's raw losses say, as pure functions of floats.

A sweep takes one step at each of a series of rates and records the loss after it. Losses are
smoothed by a centred window: a running average that only looks back delays the whole curve,
and a delay on a logarithmic axis is a factor on the answer.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from rightbatch.results import LRCurve, LRPoint, Status

_DOUBT = 3.0  # standard errors; the lowest of many losses is low by about two
_DISAGREEMENT = 10.0  # repeats a decade apart do not measure the same thing


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """One pass over ascending rates, a step at each."""

    start: float  # loss before the first step
    rates: tuple[float, ...]
    losses: tuple[float, ...]  # after the step at each rate; the last may be NaN or infinite


def log_spaced(low: float, high: float, count: int) -> tuple[float, ...]:
    """Return ``count`` rates from ``low`` to ``high``, each the same factor above the last.

    Example:
        >>> log_spaced(1.0, 100.0, 3)
        (1.0, 10.0, 100.0)
    """
    ratio = high / low
    return tuple(low * ratio ** (index / (count - 1)) for index in range(count))


def smooth(losses: Sequence[float], half_width: float) -> list[float]:
    """Average each loss with its neighbours, weighing them by ``2 ** (-distance/half_width)``.

    Weights are divided by their own sum, so a constant stays the same constant up to both ends.
    Neighbours beyond two half-widths are left out: the explosion at the end of a sweep is larger
    than any weight is small.

    Args:
        losses: Finite losses.
        half_width: Steps after which a weight has halved; positive.

    Example:
        >>> smooth([1.0, 1.0, 1.0], 2.0)
        [1.0, 1.0, 1.0]
        >>> smooth([0.0, 3.0, 0.0], 0.5)  # weights 1/4, 1, 1/4
        [0.6, 2.0, 0.6]
    """
    reach = math.ceil(2 * half_width)
    smoothed = []
    for centre in range(len(losses)):
        first, last = max(0, centre - reach), min(len(losses), centre + reach + 1)
        weights = [0.5 ** (abs(index - centre) / half_width) for index in range(first, last)]
        total = math.fsum(w * x for w, x in zip(weights, losses[first:last], strict=True))
        smoothed.append(total / math.fsum(weights))
    return smoothed


def noise_of_smoothed(losses: Sequence[float], half_width: float) -> float:
    """Estimate the standard error of a smoothed loss from its steps up on the way down.

    A loss without noise only falls before its minimum, however steeply; with noise, half of the
    small moves go up. Their median is blind to trends and to single large losses.

    Args:
        losses: Raw losses on the way down.
        half_width: Of the smoothing, in steps.

    Example:
        >>> noise_of_smoothed([8.0, 4.0, 2.0, 1.0], 2.0)
        0.0
    """
    moves_up = [after - before for before, after in pairwise(losses) if after > before]
    if not moves_up:
        return 0.0
    spread = 1.4826 * statistics.median(moves_up) / math.sqrt(2)
    reach = math.ceil(2 * half_width)
    weights = [0.5 ** (abs(distance) / half_width) for distance in range(-reach, reach + 1)]
    return spread * math.sqrt(math.fsum(w * w for w in weights)) / math.fsum(weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one sweep says."""

    rates: tuple[float, ...]  # up to the last finite loss
    smoothed: tuple[float, ...]
    edge: float | None
    suggestion: float | None


def read(sweep: Sweep, *, half_width: float) -> Reading:
    """Smooth a sweep, find its edge and suggest a rate.

    The suggestion is a quarter of the edge. On digits (an MLP, a CNN and a CNN with BatchNorm;
    SGD and Adam; batches of 16, 64 and 256) that lay within a factor of 4 of the tuned rate in
    12 of 14 cases and never at a rate that diverged; the point of steepest fall alone lay above
    a diverging rate for small batches. Where the loss never rose there is no edge, and the
    steepest fall per unit of log rate is the suggestion.

    Args:
        sweep: Raw losses.
        half_width: Of the smoothing, in steps.
    """
    finite = [loss for loss in sweep.losses if math.isfinite(loss)]
    rates = sweep.rates[: len(finite)]
    if not finite:
        return Reading(rates=(), smoothed=(), edge=None, suggestion=None)
    smoothed = smooth(_clipped(sweep.start, finite), half_width)
    lowest = smoothed.index(min(smoothed))
    # Where the start was already lowest, the first fifth still shows the noise there.
    noise = noise_of_smoothed(finite[: max(lowest + 1, len(finite) // 5)], half_width)
    exploded = len(finite) < len(sweep.losses)
    edge = edge_of(rates, smoothed, noise=noise, exploded=exploded)
    suggestion = steepest_fall(rates, smoothed, noise=noise) if edge is None else edge / 4
    return Reading(rates=rates, smoothed=tuple(smoothed), edge=edge, suggestion=suggestion)


def _clipped(start: float, losses: list[float]) -> list[float]:
    """Cut explosions a little above the first fifth of the sweep, where rates change nothing.

    A loss up there is as bad as a higher one, and must not leak into its neighbours' averages.
    """
    early = [start, *losses[: max(1, len(losses) // 5)]]
    ceiling = max(early) + 4 * (max(early) - min(early))
    return [min(loss, ceiling) for loss in losses]


def edge_of(
    rates: Sequence[float], smoothed: Sequence[float], *, noise: float, exploded: bool
) -> float | None:
    """Return the largest rate before the smoothed loss rises for good.

    That is the last rate whose loss cannot be told from the lowest one.

    Args:
        rates: Ascending.
        smoothed: Loss after a step at each rate.
        noise: Standard error of a smoothed loss; 0 for a loss without noise.
        exploded: Whether the sweep went on to a loss that is not finite.

    Returns:
        The edge, or ``None`` where the loss never rose by more than its noise.

    Example:
        >>> edge_of([1.0, 2.0, 4.0, 8.0], [3.0, 2.0, 1.0, 9.0], noise=0.0, exploded=False)
        4.0
        >>> edge_of([1.0, 2.0, 4.0], [3.0, 2.0, 1.0], noise=0.0, exploded=False) is None
        True
    """
    lowest = min(smoothed)
    last = max(index for index, loss in enumerate(smoothed) if loss <= lowest + _DOUBT * noise)
    rose = exploded or max(smoothed[last:]) > lowest + 2 * _DOUBT * noise
    return rates[last] if rose and (exploded or last < len(rates) - 1) else None


def steepest_fall(
    rates: Sequence[float], smoothed: Sequence[float], *, noise: float
) -> float | None:
    """Return the rate at which the loss falls fastest per unit of log rate.

    Rates are spaced evenly in their logarithm, so differences between neighbours are derivatives
    by log rate. Dividing by differences of the rates themselves would magnify the noise of the
    smallest rates a million times.

    Returns:
        The rate, or ``None`` where the loss nowhere fell by more than its noise.

    Example:
        >>> steepest_fall([1.0, 2.0, 4.0, 8.0, 16.0], [9.0, 9.0, 5.0, 1.0, 1.0], noise=0.1)
        4.0
    """
    if len(smoothed) < 3 or smoothed[0] - min(smoothed) <= 2 * _DOUBT * noise:
        return None
    slopes = [after - before for before, after in zip(smoothed, smoothed[2:], strict=False)]
    return rates[1 + slopes.index(min(slopes))]


def combine(
    readings: Sequence[Reading], *, batch_size: int, in_time: bool, rates: Sequence[float]
) -> LRCurve:
    """Join the repeats of a range test: medians, and the spread between repeats as the interval.

    Args:
        readings: One per repeat.
        batch_size: Examples per step.
        in_time: Whether the repeats that were planned could be run.
        rates: Every rate that was planned, ascending.
    """
    suggestions = [r.suggestion for r in readings if r.suggestion is not None]
    edges = [r.edge for r in readings if r.edge is not None]
    low, high = (min(suggestions), max(suggestions)) if suggestions else (None, None)
    # A median of repeats of which most saw no edge would be the edge of the odd ones out.
    edge = _median(edges) if 2 * len(edges) > len(readings) else None
    disagree = low is not None and high is not None and high / low >= _DISAGREEMENT
    if not in_time:
        status = Status.OUT_OF_TIME
    elif disagree:
        status = Status.DISAGREE
    else:
        status = Status.OK if edge is not None else Status.AT_THE_END
    return LRCurve(
        batch_size=batch_size,
        points=tuple(_points(readings, rates)),
        edge=edge,
        suggestion=_median(suggestions) if suggestions and not disagree else None,
        low=low,
        high=high,
        status=status,
    )


def _median(values: Sequence[float]) -> float:
    """Return the middle value; of an even number, the geometric mean of the middle two."""
    return math.exp(statistics.median(math.log(value) for value in values))


def _points(readings: Sequence[Reading], rates: Sequence[float]) -> list[LRPoint]:
    points = []
    for index, rate in enumerate(rates):
        losses = [r.smoothed[index] for r in readings if index < len(r.smoothed)]
        if 2 * len(losses) <= len(readings):
            break
        points.append(
            LRPoint(
                learning_rate=rate,
                loss=statistics.median(losses),
                low=min(losses),
                high=max(losses),
            )
        )
    return points
