"""Seconds per step between the sizes that were measured. Pure; nothing beyond them is answered.

Two laws hold for undisturbed times: a larger batch takes no less time, and mostly each further
example takes no less than the one before (the curve is convex). The first is always used, the
second where the measured points obey it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, final

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.optimize import least_squares

from rightbatch.results import StepShape, ThroughputPoint, ThroughputProfile

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

_TINY_SECONDS = 1e-12
_FEWEST_FOR_A_SHAPE = 4  # three parameters and a residual
_SHARPEST, _BLUNTEST = 32.0, 0.5
_TIE = 1e-9  # relative


@final
@dataclass(frozen=True, slots=True)
class StepCurve:
    """Measured times, ascending in size, made monotone; `at` reads between them.

    Attributes:
        sizes: Ascending.
        seconds: Never falling.
        low: Lower ends, never falling.
        high: Upper ends, never falling.
    """

    sizes: Floats
    seconds: Floats
    low: Floats
    high: Floats

    @classmethod
    def computing(cls, points: Sequence[ThroughputPoint]) -> Self:
        """Make the curve of a step on a batch that is already there."""
        return cls._of(points, [0.0] * len(points))

    @classmethod
    def training(cls, points: Sequence[ThroughputPoint]) -> Self:
        """Make the curve of what a training loop pays. Loading adds no doubt of its own."""
        return cls._of(points, [point.total_seconds - point.step_seconds for point in points])

    @classmethod
    def _of(cls, points: Sequence[ThroughputPoint], added: Sequence[float]) -> Self:
        extra = np.array(added, dtype=float)
        middle = never_falling([point.step_seconds for point in points] + extra)
        low = never_falling([point.low for point in points] + extra)
        high = never_falling([point.high for point in points] + extra)
        sizes = np.array([point.batch_size for point in points], dtype=float)
        return cls(sizes, middle, np.minimum(low, middle), np.maximum(high, middle))

    def at(self, batch_size: float) -> tuple[float, float, float]:
        """Interpolate the seconds of a step, with an interval.

        Piecewise cubic and monotone through the points. Where the points around a gap are
        convex, the truth lies below the chord across it and above both neighbours' lines
        prolonged into it. These bounds hold the value. The interval goes from the least to the
        largest that they may be for any times within the points' own intervals, so that more
        doubt about a point never narrows it. Elsewhere monotony alone bounds it.

        Args:
            batch_size: Within the measured range.

        Returns:
            Seconds, and the ends of their interval. At a measured size they are the point's own.

        Raises:
            ValueError: If the size is outside the measured range: beyond it memory, caches and
                padding change the cost of an example, and no point says how.

        Example:
            >>> curve = StepCurve(*(np.array(row) for row in (
            ...     [4.0, 8.0, 16.0], [1.0, 2.0, 4.0], [1.0, 2.0, 4.0], [1.0, 2.0, 4.0])))
            >>> curve.at(12)
            (3.0, 3.0, 3.0)
        """
        wanted = np.array([float(batch_size)])
        value = float(self.read(wanted)[0])
        right = int(np.searchsorted(self.sizes, batch_size))
        if self.sizes[right] == batch_size:
            return value, float(self.low[right]), float(self.high[right])
        low, high = float(self.low[right - 1]), float(self.high[right])
        at = np.array([right])
        if _is_convex_around(self.sizes, self.seconds, at)[0]:
            floor, chord = _bounds(self.sizes, self.low, self.high, wanted, at)
            low, high = max(low, float(floor[0])), min(high, float(chord[0]))
        return value, min(low, value), max(high, value)

    def read(self, batch_sizes: Sequence[float] | Floats) -> Floats:
        """Interpolate the seconds of a step at several sizes, as `interpolate` does."""
        return interpolate(self.sizes, self.seconds, batch_sizes)


def interpolate(sizes: Floats, values: Floats, wanted: Sequence[float] | Floats) -> Floats:
    """Interpolate what never falls and mostly bends upwards, for one curve or many at once.

    Piecewise cubic and monotone where the values are. Where they are convex around a gap, the
    result lies below the chord across it and above both neighbours' lines prolonged into it. At
    a measured size the value is the measured one.

    Args:
        sizes: Ascending, shape [sizes].
        values: Shape [..., sizes]: a row for each curve.
        wanted: Within the range of the sizes, in any order, shape [wanted].

    Returns:
        Shape [..., wanted].

    Raises:
        ValueError: If a wanted size is outside the measured range.

    Example:
        Two curves over the same sizes, a straight one and a bent one:

        >>> sizes = np.array([4.0, 8.0, 16.0])
        >>> values = np.array([[1.0, 2.0, 4.0], [2.0, 2.0, 6.0]])
        >>> interpolate(sizes, values, [16, 6]).tolist()
        [[4.0, 1.5], [6.0, 2.0]]

    References:
        Fritsch and Butland (1984), A method for constructing local monotone piecewise cubic
        interpolants, https://doi.org/10.1137/0905021.
    """
    where = np.asarray(wanted, dtype=float)
    outside = where[~((where >= sizes[0]) & (where <= sizes[-1]))]
    if outside.size:
        raise ValueError(
            f"`batch_size` must lie in the measured range {sizes[0]:g} to {sizes[-1]:g}, got "
            f"{outside[0]:g}. Step times are never extrapolated: measure that size."
        )
    right = np.searchsorted(sizes, where)
    result = values[..., right]
    gap = sizes[right] != where
    if gap.any():
        where, right = where[gap], right[gap]
        smooth = PchipInterpolator(sizes, values, axis=-1)(where)
        floor, chord = _bounds(sizes, values, values, where, right)
        bounded = np.minimum(np.maximum(smooth, floor), chord)
        convex = _is_convex_around(sizes, values, right)
        result[..., gap] = np.where(convex, bounded, smooth)
    return result


def never_falling(values: Sequence[float] | Floats) -> Floats:
    """Lower each value to the smallest at or after it: a busy machine only ever adds.

    Example:
        >>> never_falling([1.0, 9.0, 3.0, 4.0]).tolist()
        [1.0, 3.0, 3.0, 4.0]
    """
    return np.minimum.accumulate(np.asarray(values, dtype=float)[::-1])[::-1]


def _slopes(sizes: Floats, values: Floats) -> Floats:
    return np.diff(values, axis=-1) / np.diff(sizes)


def _is_convex_around(sizes: Floats, values: Floats, right: Indices) -> NDArray[np.bool_]:
    """Whether slopes never fall over the gaps that end at ``right`` and their neighbours.

    Returns:
        Shape [..., right]. Two sizes have one slope, which says nothing.
    """
    slopes = _slopes(sizes, values)
    if slopes.shape[-1] < 2:
        return np.zeros((*values.shape[:-1], len(right)), dtype=bool)
    rising = np.diff(slopes, axis=-1) >= -1e-9 * np.abs(slopes[..., 1:])
    ends = np.ones((*rising.shape[:-1], 1), dtype=bool)  # no neighbour there to contradict
    rising = np.concatenate([ends, rising, ends], axis=-1)
    return rising[..., right - 1] & rising[..., right]


def _bounds(
    sizes: Floats, low: Floats, high: Floats, where: Floats, right: Indices
) -> tuple[Floats, Floats]:
    """Bound a convex curve of which each point lies between two values; shape [..., where].

    A line through two points, prolonged beyond one of them, is lowest there where that one is as
    low and the farther one as high as may be. Neither bound passes the straight line between the
    ends at both sides of the gap: a point's own interval is not narrowed by its neighbours.
    """
    left, gaps = right - 1, np.diff(sizes)
    ends = np.zeros((*low.shape[:-1], 1))
    least = (low[..., 1:] - high[..., :-1]) / gaps  # slopes; one that falls says nothing
    most = (high[..., 1:] - low[..., :-1]) / gaps
    before = np.concatenate([ends, np.maximum(least, 0.0)], axis=-1)[..., left]
    after = np.concatenate([most, ends + np.inf], axis=-1)[..., right]
    from_left, to_right = where - sizes[left], sizes[right] - where
    lowest, highest = (
        values[..., left] + _slopes(sizes, values)[..., left] * from_left for values in (low, high)
    )
    floor = np.maximum(low[..., left] + before * from_left, low[..., right] - after * to_right)
    return np.minimum(floor, lowest), highest


def fit_step_shape(points: Sequence[ThroughputPoint]) -> StepShape | None:
    r"""Fit ``t(b) = (alpha^g + (beta b)^g)^(1/g)`` to log(seconds), all parts positive.

    With ``g = 1`` a straight line; with a large ``g`` flat up to a knee and proportional beyond,
    as on a device that computes small batches in parallel.

    Trap: where the sizes do not reach both ends, one part is hardly determined. The fit explains
    the points; to decide, interpolate them with `StepCurve`.

    Args:
        points: Ascending in batch size.

    Returns:
        The fit, or ``None`` for fewer than four points.

    Example:
        >>> points = [
        ...     ThroughputPoint(
        ...         batch_size=b, step_seconds=t, low=t, high=t, load_seconds=0.0, total_seconds=t
        ...     )
        ...     for b, t in [(1, 17**0.5), (2, 20**0.5), (4, 32**0.5), (8, 80**0.5), (16, 272**0.5)]
        ... ]
        >>> shape = fit_step_shape(points)
        >>> round(shape.alpha_seconds, 3), round(shape.beta_seconds_per_example, 3)
        (4.0, 1.0)
        >>> round(shape.sharpness, 3)
        2.0
    """
    if len(points) < _FEWEST_FOR_A_SHAPE:
        return None
    log_sizes = np.log([point.batch_size for point in points])
    log_seconds = np.log([max(point.step_seconds, _TINY_SECONDS) for point in points])

    def residuals(parameters: Floats) -> Floats:
        return log_shape(parameters, log_sizes) - log_seconds

    per_example = float(log_seconds[-1] - log_sizes[-1])
    bounds = ([-np.inf, -np.inf, math.log(_BLUNTEST)], [np.inf, np.inf, math.log(_SHARPEST)])
    fits = [
        least_squares(
            residuals, [log_seconds[0] + lower, per_example, math.log(sharpness)], bounds=bounds
        )
        for sharpness in (1.0, 4.0)
        for lower in (-0.1, -2.0)
    ]
    best = min(fits, key=lambda fit: fit.cost)
    log_alpha, log_beta, log_sharpness = (float(value) for value in best.x)
    return StepShape(
        alpha_seconds=math.exp(log_alpha),
        beta_seconds_per_example=math.exp(log_beta),
        sharpness=math.exp(log_sharpness),
        residual=math.sqrt(2 * float(best.cost) / len(points)),
    )


def log_shape(parameters: Sequence[float] | Floats, log_sizes: Floats) -> Floats:
    """Return log(seconds) of the shape with ``(log alpha, log beta, log g)`` at some log(sizes)."""
    log_alpha, log_beta, log_sharpness = parameters
    sharpness = math.exp(log_sharpness)
    terms = np.logaddexp(sharpness * log_alpha, sharpness * (log_beta + log_sizes))
    return terms / sharpness


def optimizer_seconds(throughput: ThroughputProfile) -> float:
    """Seconds of a step that do not come again with every micro-batch.

    From the measured shares of a step. Without them 0: then every pass of an accumulated step
    counts a whole step, as it was timed. Never more than the fastest step.
    """
    if throughput.shares is None:
        return 0.0
    curve = StepCurve.computing(throughput.points)
    size = min(max(throughput.shares.batch_size, curve.sizes[0]), curve.sizes[-1])
    measured, *_ = curve.at(size)
    return min(
        throughput.shares.optimizer * measured,
        float(StepCurve.training(throughput.points).seconds[0]),
    )


def accumulated(passes: Floats, accumulation_steps: Floats, optimizer: float) -> Floats:
    """Seconds of a step of several passes, before communication.

    Example:
        Three passes of 5 ms, of which the optimizer takes 2 once:

        >>> float(accumulated(np.array(5.0), np.array(3.0), 2.0))
        11.0
    """
    return accumulation_steps * np.maximum(passes - optimizer, 0.0) + optimizer


def best_micro_batch(profile: ThroughputProfile, batch_size: int) -> int:
    """Choose how many examples to pass at a time to make up a batch in the least time.

    Minimizes ``batch_size / m * (seconds(m) - optimizer) + optimizer`` over the divisors ``m`` of
    the batch within the measured range: the optimizer steps once, however many passes there are.
    The largest is not always the fastest. Of equals the larger one is taken: fewer passes.

    Args:
        profile: Seconds per step.
        batch_size: Examples per optimizer step on this device.

    Returns:
        The micro-batch.

    Raises:
        ValueError: If no divisor lies within the measured range.

    Example:
        A pass of 8 takes as long per example as one of 4, a pass of 16 longer.

        >>> from rightbatch.results import Status
        >>> profile = ThroughputProfile(
        ...     points=tuple(
        ...         ThroughputPoint(batch_size=b, step_seconds=t, low=t, high=t,
        ...                         load_seconds=0.0, total_seconds=t)
        ...         for b, t in [(4, 1.0), (8, 2.0), (16, 6.0)]
        ...     ),
        ...     alpha_seconds=0.0, beta_seconds_per_example=0.25, half_batch_size=None,
        ...     bottleneck="compute", status=Status.OK,
        ... )
        >>> best_micro_batch(profile, 32)
        8
    """
    curve = StepCurve.training(profile.points)
    first, last = profile.points[0].batch_size, profile.points[-1].batch_size
    micros = [m for m in range(first, min(last, batch_size) + 1) if batch_size % m == 0]
    if not micros:
        raise ValueError(
            f"`batch_size` must have a divisor in the measured range {first} to {last}, got "
            f"batch_size={batch_size}. Step times are never extrapolated: measure more sizes."
        )
    passes = np.array([batch_size // m for m in micros], dtype=float)
    seconds = accumulated(curve.read(micros), passes, optimizer_seconds(profile))
    least = float(seconds.min())
    return max(m for m, s in zip(micros, seconds, strict=True) if s <= least * (1 + _TIE))
