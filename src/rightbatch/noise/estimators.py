r"""The algebra of gradient noise: floats in, floats out.

A probe at frozen weights sees K micro-batches, micro-batch k with weight ``w_k`` (its units)
and mean gradient ``g_k``. It keeps three floats of each, and never a gradient:

    q_k = |g_k|^2        the square
    a_k = <g_k, m_k>     the inner product with the mean ``m_k`` of all gradients before it
    w_k                  the weight

and, once at the end, ``M = |sum_k p_k g_k|^2`` with ``p_k = w_k / W``. From these come the two
parts of the noise scale, the variances of both, and their covariance. With ``G`` the true
gradient, ``Sigma`` the covariance of one unit's gradient:

    E[q_k] = |G|^2 + tr(Sigma)/w_k          E[M] = |G|^2 + tr(Sigma)/W
    E[a_k] = |G|^2
    Var[a_k] = G'Sigma G (1/w_k + 1/W_k) + tr(Sigma^2)/(w_k W_k),   W_k = sum_{j<k} w_j

The last line is why ``a_k`` is kept: its scatter tells how far the estimate of ``|G|^2`` may be
off, whatever the spectrum of ``Sigma``, without a second pass and without a stored gradient.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from rightbatch._stats import fieller_interval

Floats = NDArray[np.float64]

_REWEIGHTINGS = 5  # of the variance fit; it changes by less than 1 % after three


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseEstimate:
    """Both parts of the noise scale, in one unit, with their errors."""

    grad_sq: float  # |G|^2, unbiased, may be negative
    trace_cov: float  # tr(Sigma) of one unit, unbiased
    var_grad_sq: float
    var_trace_cov: float
    covariance: float
    quadratic_share: float  # of var_grad_sq, the part that falls as 1/n^2 rather than 1/n
    units: float  # W
    micro_batches: int  # K
    degrees: float | None = None  # of freedom behind the variances; None: by the micro-batches

    @property
    def ratio(self) -> float | None:
        """``tr(Sigma)/|G|^2`` in units; ``None`` where ``|G|^2`` is not positive."""
        if self.grad_sq > 0 and self.trace_cov > 0:
            return self.trace_cov / self.grad_sq
        return 0.0 if self.grad_sq > 0 else None

    def interval(self) -> tuple[float, float | None]:
        """95 % interval of the ratio in units; ``None``: no upper end."""
        if math.isinf(self.var_grad_sq):
            return 0.0, None
        return fieller_interval(
            self.trace_cov,
            self.grad_sq,
            var_numerator=self.var_trace_cov,
            var_denominator=self.var_grad_sq,
            covariance=self.covariance,
            degrees=max(1.0, self.micro_batches / 2) if self.degrees is None else self.degrees,
        )

    def units_for(self, precision: float) -> float | None:
        """Units that would bring the interval's half-width to ``precision`` of the ratio.

        Args:
            precision: Relative half-width, such as 0.2.

        Returns:
            Units in all, those of this estimate included; ``None`` where ``|G|^2`` is not
            resolved well enough to extrapolate from.
        """
        if self.grad_sq**2 <= self.var_grad_sq or self.trace_cov <= 0:
            return None
        linear = (1 - self.quadratic_share) * self.var_grad_sq / self.grad_sq**2
        linear += self.var_trace_cov / self.trace_cov**2
        quadratic = self.quadratic_share * self.var_grad_sq / self.grad_sq**2
        wanted = (precision / 1.96) ** 2  # relative variance
        # linear / r + quadratic / r^2 = wanted, r = units wanted / units now
        r = (linear + math.sqrt(linear**2 + 4 * wanted * quadratic)) / (2 * wanted)
        return r * self.units


def estimate_noise(
    squares: Floats,
    inner_products: Floats,
    weights: Floats,
    mean_sq: float,
    *,
    population: float | None = None,
) -> NoiseEstimate:
    r"""Estimate ``|G|^2`` and ``tr(Sigma)`` from all micro-batches of a frozen probe at once.

    ``trace_cov = W (S - M) / (K - 1)`` and ``grad_sq = (K M - S) / (K - 1)`` with
    ``S = sum_k p_k q_k``: a U-statistic over all pairs of micro-batches, unbiased for any, also
    unequal, weights. Trap: a mean of per-group ratios, or clamping negative values, is biased
    exactly where noise dominates.

    Drawing without replacement from ``population`` units makes different micro-batches
    anti-correlated; ``trace_cov / population`` corrects for it. When the probe has seen the whole
    population, ``grad_sq`` is then exactly ``M``, the squared gradient of the training loss.

    Args:
        squares: ``q_k``, shape [K].
        inner_products: ``a_k``, shape [K]; the first is not used.
        weights: ``w_k`` in units, shape [K], positive.
        mean_sq: ``M``.
        population: Units to draw from without replacement; ``None``: fresh data.

    Returns:
        Both parts with their errors. ``grad_sq`` may be negative: that is information.

    Raises:
        ValueError: If there are fewer than three micro-batches.

    Example:
        Four units with gradients +3, -1, 1, 1 (one coordinate): the mean is 1, the variance
        8/3, and having seen all four the squared gradient is exactly 1.

        >>> g = np.array([3.0, -1.0, 1.0, 1.0])
        >>> before = np.array([0.0, 3.0, 1.0, 1.0])  # mean of the gradients before
        >>> e = estimate_noise(g**2, g * before, np.ones(4), g.mean() ** 2, population=4)
        >>> round(e.grad_sq, 12), round(e.trace_cov, 12)
        (1.0, 2.666666666667)

    References:
        McCandlish et al. (2018), An Empirical Model of Large-Batch Training,
        https://arxiv.org/abs/1812.06162, Appendix A.1 (two sizes; pooled over pairs here).
    """
    count = len(squares)
    if count < 3:
        raise ValueError(
            f"an estimate with an interval needs at least 3 micro-batches, got {count}. "
            "Use a smaller micro-batch or more examples."
        )
    units = float(weights.sum())
    small_sq = float((weights / units) @ squares)
    trace_cov = units * float(small_sq - mean_sq) / (count - 1)
    grad_sq = float(count * mean_sq - small_sq) / (count - 1)

    linear, quadratic = _fit_scatter(inner_products, weights, grad_sq)
    var_linear = 4 * linear / units
    var_quadratic = 2 * quadratic * count / (units**2 * (count - 1))
    var_trace_cov, covariance = _scatter_of_trace(squares, inner_products, weights, grad_sq)

    if population is not None:
        # What is already seen cannot err: the whole population leaves no doubt in |G|^2.
        unseen = max(0.0, 1 - units / population)
        var_linear, var_quadratic, covariance = (
            var_linear * unseen,
            var_quadratic * unseen,
            covariance * unseen,
        )
        grad_sq += trace_cov / population
    var_grad_sq = var_linear + var_quadratic
    limit = math.sqrt(var_trace_cov * var_grad_sq)  # Cauchy-Schwarz
    return NoiseEstimate(
        grad_sq=grad_sq,
        trace_cov=trace_cov,
        var_grad_sq=var_grad_sq,
        var_trace_cov=var_trace_cov,
        covariance=float(np.clip(covariance, -limit, limit)),
        quadratic_share=var_quadratic / var_grad_sq if var_grad_sq > 0 else 0.0,
        units=units,
        micro_batches=count,
    )


def two_sizes(
    small_sq: Floats, big_sq: Floats, *, small_inverse: float, big_inverse: float
) -> tuple[Floats, Floats]:
    r"""Solve ``E|g|^2 = |G|^2 + tr(Sigma) / size`` at two sizes, for any numbers of cells.

    Args:
        small_sq: Mean ``|g|^2`` of small gradients.
        big_sq: ``|g|^2`` of the big one, of the same shape.
        small_inverse: Mean of ``1/size`` over the small ones, each weighted as in ``small_sq``.
        big_inverse: ``sum f^2 / w`` of a big one that sums gradients of ``w`` units with factors
            ``f`` that add up to 1: ``1/size`` where all units count alike.

    Returns:
        ``tr(Sigma)`` and ``|G|^2``, unbiased; the latter may be negative.

    Raises:
        ValueError: If the small gradients are not smaller than the big one.

    Example:
        >>> two_sizes(np.array([3.0]), np.array([1.5]), small_inverse=1.0, big_inverse=1 / 4)
        (array([2.]), array([1.]))

    References:
        McCandlish et al. (2018), https://arxiv.org/abs/1812.06162, appendix A.1.
    """
    gap = small_inverse - big_inverse
    if not gap > 0 or not big_inverse > 0:
        raise ValueError(
            f"`small_inverse` must exceed `big_inverse`, and both be positive, got small_inverse="
            f"{small_inverse!r}, big_inverse={big_inverse!r}. Two gradients of one size tell "
            "nothing of the noise: split the batch into micro-batches."
        )
    return (small_sq - big_sq) / gap, (small_inverse * big_sq - big_inverse * small_sq) / gap


def _fit_scatter(inner_products: Floats, weights: Floats, grad_sq: float) -> tuple[float, float]:
    """Fit ``G'Sigma G`` and ``tr(Sigma^2)`` to the squared deviations of ``a_k``."""
    before = np.cumsum(weights)[:-1]
    own = weights[1:]
    squared = (inner_products[1:] - grad_sq) ** 2
    design = np.stack([1 / own + 1 / before, 1 / (own * before)], axis=1)
    fitted = np.array([0.0, float(np.mean(squared * own * before))])
    for _ in range(_REWEIGHTINGS):
        # A squared deviation scatters in proportion to its own mean.
        scale = design @ fitted
        if not np.all(scale > 0):
            break
        fitted, _ = nnls(design / scale[:, None], squared / scale)
    return float(fitted[0]), float(fitted[1])


def _scatter_of_trace(
    squares: Floats, inner_products: Floats, weights: Floats, grad_sq: float
) -> tuple[float, float]:
    """Variance of ``trace_cov``, and its covariance with ``grad_sq``."""
    own, before = weights[1:], np.cumsum(weights)[:-1]
    # |g_k - G|^2 w_k estimates tr(Sigma), micro-batch by micro-batch.
    traces = own * (squares[1:] - 2 * inner_products[1:] + grad_sq)
    variance = float(np.var(traces, ddof=1)) / len(traces)
    late = before / before.sum()  # a_k is the better, the more gradients came before
    deviation = own * (inner_products[1:] - grad_sq)
    covariance = 2 / float(weights.sum()) * float(late @ (deviation * (traces - late @ traces)))
    return variance, covariance
