"""Intervals that stay honest where the usual ones do not."""

import math

from scipy.special import stdtrit  # pyright: ignore[reportMissingTypeStubs]


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
