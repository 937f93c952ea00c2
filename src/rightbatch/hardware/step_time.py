"""What step times mean: their low quantile with doubt, the line through them, the plateau.

Pure functions of numbers; nothing here looks at a clock.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import nnls
from scipy.special import stdtrit

from rightbatch.results import ThroughputPoint

QUANTILE = 0.2
_QUANTILE_ERROR = 1.43  # of a normal sample's 20 % quantile, in standard errors of its mean
_FEWEST_RESAMPLED = 10  # resampled intervals of fewer cover too little (56 % at four)
_LONE_FACTOR = 2.0
_RESAMPLES = 1000
_PLATEAU_GAIN = 1.05  # per doubling, in examples per second


def estimate_seconds(
    samples: Sequence[float], rng: np.random.Generator
) -> tuple[float, float, float]:
    """Estimate what a step takes on an undisturbed machine.

    Other work on the machine only ever adds time, so the 20 % quantile is taken and not the
    mean; not the minimum either, which keeps falling the longer one measures.

    Args:
        samples: Seconds per step, one for each round, such as its fastest; at least one.
        rng: Of the resampling.

    Returns:
        The quantile and its 95 % interval: by resampling from ten samples on, by Student's t on
        log(seconds) below, where resampling would cover half of what it says. One sample tells
        nothing of its spread: it counts as right within a factor of two.

    Example:
        >>> estimate_seconds([1.0, 1.0, 1.0, 1.0, 9.0], np.random.default_rng(0))[0]
        1.0
        >>> estimate_seconds([3.0], np.random.default_rng(0))
        (3.0, 1.5, 6.0)
    """
    values = np.asarray(samples, dtype=float)
    value = float(np.quantile(values, QUANTILE))
    if len(values) == 1:
        return value, value / _LONE_FACTOR, value * _LONE_FACTOR
    if len(values) < _FEWEST_RESAMPLED:
        spread = float(np.std(np.log(np.maximum(values, 1e-12)), ddof=1))
        error = _QUANTILE_ERROR * spread / math.sqrt(len(values))
        widest = math.log(_LONE_FACTOR)  # several samples never tell less than one
        reach = math.exp(min(widest, float(stdtrit(len(values) - 1, 0.975)) * error))
        return value, value / reach, value * reach
    drawn = rng.choice(values, size=(_RESAMPLES, len(values)))
    low, high = np.quantile(np.quantile(drawn, QUANTILE, axis=1), [0.025, 0.975])
    return value, min(value, float(low)), max(value, float(high))


def fit_step_line(points: Sequence[ThroughputPoint]) -> tuple[float, float, float | None]:
    """Fit ``step_seconds = alpha + beta b`` with both parts not negative, to relative errors.

    The line sums up the points and explains them; it does not replace them. Between sizes
    interpolate the points themselves, beyond them trust neither.

    Args:
        points: Ascending in batch size, at least one.

    Returns:
        ``alpha`` in seconds, ``beta`` in seconds per example, and ``alpha / beta``: the size
        that reaches half of the highest rate. It is ``None`` where the largest size does not
        take longer than the smallest by more than the doubt of both.

    Example:
        >>> steps = [(4, 0.018), (8, 0.026), (16, 0.042)]
        >>> points = [
        ...     ThroughputPoint(
        ...         batch_size=b, step_seconds=t, low=t, high=t, load_seconds=0.0, total_seconds=t
        ...     )
        ...     for b, t in steps
        ... ]
        >>> [round(part, 6) for part in fit_step_line(points)]
        [0.01, 0.002, 5.0]
    """
    first, last = points[0], points[-1]
    if len(points) == 1:
        return first.step_seconds, 0.0, None
    alpha, beta = line_through(
        [point.batch_size for point in points], [point.step_seconds for point in points]
    )
    resolved = beta > 0 and last.low > first.high
    return alpha, beta, alpha / beta if resolved else None


def line_through(sizes: Sequence[int], values: Sequence[float]) -> tuple[float, float]:
    """Fit ``value = fixed + each x size`` with both parts not negative, to relative errors.

    Example:
        >>> [round(part, 6) for part in line_through([4, 8, 16], [18.0, 26.0, 42.0])]
        [10.0, 2.0]
    """
    columns = np.array(sizes, dtype=float)
    targets = np.array([max(value, 1e-12) for value in values])
    # Columns of similar length, or nnls takes the smaller coefficient for rounding.
    design = np.stack([np.ones_like(columns), columns / columns[-1]], axis=1) / targets[:, None]
    (fixed, at_largest), _ = nnls(design, np.ones_like(columns))
    return float(fixed), float(at_largest / columns[-1])


def reaches_plateau(rates: Sequence[tuple[int, float]]) -> bool:
    """Say whether two doublings in a row improved the rate by less than 5 % each.

    Args:
        rates: ``(batch_size, examples_per_second)``, ascending in batch size.

    Example:
        >>> reaches_plateau([(8, 100.0), (16, 104.0), (32, 106.0)])
        True
        >>> reaches_plateau([(8, 100.0), (16, 104.0), (32, 111.0)])
        False
    """
    last = rates[-1]
    for _ in range(2):
        halves = [entry for entry in rates if entry[0] <= last[0] / 2]
        if not halves or last[1] >= _PLATEAU_GAIN * halves[-1][1]:
            return False
        last = halves[-1]
    return True
