"""Intervals that stay honest where the usual ones do not."""

import math
from collections.abc import Callable
from typing import NamedTuple

from scipy.optimize import (  # pyright: ignore[reportMissingTypeStubs]
    brentq,  # pyright: ignore[reportUnknownVariableType]
)
from scipy.special import stdtr, stdtrit  # pyright: ignore[reportMissingTypeStubs]

_CLEARLY_NEGATIVE = 0.005  # chance below which a negative estimate is no longer bad luck
_DOUBLINGS = 200
_RELATIVE = 1e-9  # to which ends of an interval are found


class Score(NamedTuple):
    """How well data fit a supposed value of a quantity that is not negative."""

    value: float  # (estimate - supposed) / error, positive where more was seen than supposed
    distance: float  # supposed / error
    degrees: float  # of freedom behind the error


def fieller_interval(
    numerator: float,
    denominator: float,
    *,
    var_numerator: float,
    var_denominator: float,
    covariance: float = 0.0,
    degrees: float = math.inf,
    level: float = 0.95,
) -> tuple[float, float | None]:
    r"""Bound the ratio of two positive quantities that are each known with an error.

    The interval is the set of ratios ``R`` that a t-test of ``numerator - R * denominator = 0``
    does not reject. Where the denominator is not clearly above zero that set has no upper
    end, and the answer says so; the delta method would print a finite, wrong one.

    Args:
        numerator: Estimate of a quantity that is not negative.
        denominator: Estimate of a quantity that is not negative; may itself be negative.
        var_numerator: Variance of the numerator's estimate.
        var_denominator: Variance of the denominator's estimate.
        covariance: Covariance of the two estimates.
        degrees: Degrees of freedom behind the variances.
        level: Coverage, in (0, 1).

    Returns:
        The lower end (at least 0), and the upper end or ``None`` where it is unbounded.

    Raises:
        ValueError: If a variance is negative.

    Example:
        Without errors the interval is the ratio itself:

        >>> fieller_interval(6.0, 2.0, var_numerator=0.0, var_denominator=0.0)
        (3.0, 3.0)

        A denominator of 1 with standard error 1 may well be zero:

        >>> fieller_interval(6.0, 1.0, var_numerator=0.0, var_denominator=1.0)[1] is None
        True

    References:
        Fieller (1954), Some Problems in Interval Estimation, JRSS B 16(2).
    """
    if var_numerator < 0 or var_denominator < 0:
        raise ValueError(
            f"variances must not be negative, got var_numerator={var_numerator}, "
            f"var_denominator={var_denominator}. Estimate them from at least two repeats."
        )
    quantile = float(stdtrit(degrees, 0.5 + level / 2))  # Student's t
    z2 = quantile**2
    # The accepted ratios solve  square * R^2 - 2 * cross * R + constant <= 0.
    square = denominator**2 - z2 * var_denominator
    cross = numerator * denominator - z2 * covariance
    constant = numerator**2 - z2 * var_numerator
    discriminant = cross**2 - square * constant
    if square > 0 and denominator > 0:
        root = math.sqrt(max(discriminant, 0.0))
        return max(0.0, (cross - root) / square), max(0.0, (cross + root) / square)
    # The denominator may be zero: ratios beyond the larger root are accepted, however large.
    if square >= 0 or discriminant < 0 or constant <= 0:
        return 0.0, None
    root = math.sqrt(discriminant)
    return max(0.0, (cross - root) / square), None


def fits(score: Score, *, level: float = 0.95) -> bool:
    r"""Test a supposed value ``mu >= 0`` by the likelihood ratio against the best allowed one.

    Far from zero this is the usual two-sided t-test. Near zero it becomes one-sided, since a
    negative quantity is no rival: an estimate above zero is significant a little earlier, a
    negative one speaks against no value near zero, and the level stays what it says. The usual
    test with its empty intervals dropped would cover 97.5 %.

    Args:
        score: Of the value.
        level: Coverage, in (0, 1).

    Example:
        1.8 errors above zero, two-sided nothing, are something if it cannot be negative:

        >>> fits(Score(1.8, distance=0.0, degrees=1e9))
        False
        >>> fits(Score(1.8, distance=5.0, degrees=1e9))
        True

    References:
        Feldman and Cousins (1998), https://arxiv.org/abs/physics/9711021, section IV.B.
    """
    both = float(stdtrit(score.degrees, 0.5 + level / 2))
    mu = score.distance
    if mu >= both:
        return abs(score.value) <= both
    one = float(stdtrit(score.degrees, level))
    if mu < 1e-6 * one:
        return score.value <= one

    def below(above: float) -> float:  # the equally likely deviation to the other side
        return mu / 2 + above**2 / (2 * mu)

    def excess(above: float) -> float:
        return float(stdtr(score.degrees, above) - stdtr(score.degrees, -below(above))) - level

    above = float(brentq(excess, one * (1 - 1e-9), both * (1 + 1e-9)))  # type: ignore[arg-type]
    return -below(above) <= score.value <= above


def score_interval(score: Callable[[float], Score], *, start: float) -> tuple[float, float | None]:
    """Collect the ratios ``1/x`` whose inverse ``x >= 0`` fits the data.

    Args:
        score: Of an inverse ratio; above some ``x`` it must only fall.
        start: An inverse ratio of the right order of magnitude, positive.

    Returns:
        Lower end of the ratio, and the upper end or ``None``: no end, ``x = 0`` fits.

    Example:
        An inverse of 0.5 with an error of 0.1:

        >>> low, high = score_interval(
        ...     lambda x: Score((0.5 - x) / 0.1, x / 0.1, 1e9), start=0.5
        ... )
        >>> round(1 / low, 3), round(1 / high, 3)
        (0.696, 0.304)
    """
    at_zero = score(0.0)
    if at_zero.value < stdtrit(at_zero.degrees, _CLEARLY_NEGATIVE):
        return 0.0, None  # some assumption does not hold: claim nothing
    outside = start
    for _ in range(_DOUBLINGS):
        if score(outside).value < 0 and not fits(score(outside)):
            break
        outside *= 2
    low = 1 / _edge(score, 0.0, outside, upwards=False)
    if fits(at_zero):
        return low, None
    return low, 1 / _edge(score, 0.0, start, upwards=True)


def _edge(score: Callable[[float], Score], left: float, right: float, *, upwards: bool) -> float:
    """Bisect to where values stop being rejected as too small (upwards) or begin as too large."""
    while right - left > _RELATIVE * right:
        middle = (left + right) / 2
        found = score(middle)
        rejected = not fits(found)
        if upwards:
            left, right = (middle, right) if rejected and found.value > 0 else (left, middle)
        else:
            left, right = (left, middle) if rejected and found.value < 0 else (middle, right)
    return (left + right) / 2


def skew_to_normal(value: float, *, skewness: float) -> float:
    """Map a standardised gamma variable to a normal one, by Wilson and Hilferty's cube root.

    Args:
        value: With mean 0 and standard deviation 1.
        skewness: Of its distribution, not negative.

    Example:
        The upper 2.5 % of a chi-square with 8 degrees, skewness 1, begin at 17.535:

        >>> round(skew_to_normal((17.535 - 8) / 4, skewness=1.0), 2)
        1.96

    References:
        Wilson and Hilferty (1931), The distribution of chi-square, PNAS 17(12).
    """
    if skewness <= 1e-6:
        return value
    root = 2 / skewness  # sqrt of the gamma's shape
    cube = math.cbrt(max(1 + value / root, 0.0))
    return 3 * root * (cube - 1 + 1 / (9 * root**2))
