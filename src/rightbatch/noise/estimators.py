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
    Var[a_k | m_k] = m_k'Sigma m_k / w_k

The last line is why ``a_k`` is kept. ``|m_k|^2`` follows from the same floats, so their scatter
tells ``lambda = m'Sigma m / |m|^2``, the eigenvalue of Sigma that gradients meet, and with it how
far the estimate of ``|G|^2`` may be off, whatever the spectrum of ``Sigma``:

    Var = 4 lambda |G|^2 / W + 2 lambda tr(Sigma) / W^2

Dividing by ``|m|^2`` matters: where noise dominates, a mean gradient that is long by chance lifts
the estimate of ``|G|^2`` and the scatter of ``a_k`` alike. And the interval asks of each ratio
whether the data fit it *if it were true*, so ``|G|^2`` in this variance is that of the ratio.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rightbatch._stats import Score, fieller_interval, score_interval, skew_to_normal

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scatter:
    """What a frozen probe knows of its own errors, enough to test any ratio."""

    eigenvalue: float  # lambda, per unit
    unseen: float  # share of the population not drawn; 1: fresh data
    degrees_grad_sq: float  # of freedom behind lambda
    degrees_trace_cov: float  # and behind the variance of tr(Sigma)


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
    scatter: Scatter | None = None  # None: the variances above are all that is known

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
        if self.scatter is not None and self.trace_cov > 0:
            spread = math.sqrt(2 * self.scatter.eigenvalue / self.trace_cov) / self.units
            start = max(self.grad_sq / self.trace_cov, spread * self.scatter.unseen)
            return score_interval(self._score, start=start)
        return fieller_interval(
            self.trace_cov,
            self.grad_sq,
            var_numerator=self.var_trace_cov,
            var_denominator=self.var_grad_sq,
            covariance=self.covariance,
            degrees=max(1.0, self.micro_batches / 2) if self.degrees is None else self.degrees,
        )

    def _score(self, inverse: float) -> Score:
        """Test whether ``|G|^2 = inverse * tr(Sigma)``, with the errors there would be then."""
        scatter = self.scatter
        assert scatter is not None
        noise = self.trace_cov * scatter.unseen / self.units  # in the mean gradient, squared
        each = scatter.eigenvalue * scatter.unseen / self.units
        supposed = inverse * self.trace_cov
        var_grad_sq = 2 * each * (noise + 2 * supposed)
        # A sample without its rare large gradients has a small mean and a small variance at once:
        # where the data ask for more than was seen, the error grows with it.
        grown = max(1.0, self.grad_sq / supposed) if supposed > 0 else 1.0
        var_trace = inverse**2 * self.var_trace_cov * min(grown, 3.0) ** 3
        variance = var_grad_sq + var_trace - 2 * inverse * self.covariance
        variance = max(variance, 0.01 * (var_grad_sq + var_trace))  # the covariance errs, too
        if variance <= 0:
            return Score(math.copysign(math.inf, self.grad_sq - supposed), math.inf, 1.0)
        third = 8 * each**2 * (noise + 3 * supposed)  # central moment of the estimate of |G|^2
        error = math.sqrt(variance)
        return Score(
            skew_to_normal((self.grad_sq - supposed) / error, skewness=third / error**3),
            supposed / error,
            # Satterthwaite: degrees of a sum of two estimated variances.
            (var_grad_sq + var_trace) ** 2
            / (var_grad_sq**2 / scatter.degrees_grad_sq + var_trace**2 / scatter.degrees_trace_cov),
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

    before, own = np.cumsum(weights)[:-1], weights[1:]
    means_sq = _squares_of_running_means(squares, inner_products, weights)
    eigenvalue, degrees = _fit_eigenvalue(inner_products, weights, means_sq, grad_sq)
    # |g_k - m_k|^2 estimates tr(Sigma) (1/w_k + 1/W_k), micro-batch by micro-batch.
    traces = (squares[1:] - 2 * inner_products[1:] + means_sq) / (1 / own + 1 / before)
    covariance = _fit_covariance(own * (inner_products[1:] - grad_sq), traces, before) / units

    # What is already seen cannot err: the whole population leaves no doubt in |G|^2.
    unseen = 1.0 if population is None else max(0.0, 1 - units / population)
    grad_sq += 0.0 if population is None else trace_cov / population
    var_linear = 4 * eigenvalue * max(grad_sq, 0.0) * unseen / units
    var_quadratic = 2 * eigenvalue * trace_cov * (unseen / units) ** 2
    var_grad_sq = var_linear + var_quadratic
    var_trace_cov = float(np.var(traces, ddof=1)) / len(traces)
    limit = math.sqrt(var_trace_cov * var_grad_sq)  # Cauchy-Schwarz
    return NoiseEstimate(
        grad_sq=grad_sq,
        trace_cov=trace_cov,
        var_grad_sq=var_grad_sq,
        var_trace_cov=var_trace_cov,
        covariance=float(np.clip(covariance * unseen, -limit, limit)),
        quadratic_share=var_quadratic / var_grad_sq if var_grad_sq > 0 else 0.0,
        units=units,
        micro_batches=count,
        scatter=Scatter(
            eigenvalue=eigenvalue,
            unseen=unseen,
            degrees_grad_sq=degrees,
            degrees_trace_cov=_degrees_of_variance(traces),
        ),
    )


def _squares_of_running_means(squares: Floats, inner_products: Floats, weights: Floats) -> Floats:
    """``|m_k|^2`` before each micro-batch but the first, from ``|s + w g|^2`` step by step."""
    before = np.cumsum(weights)[:-1]
    steps = weights**2 * squares
    steps[1:] += 2 * weights[1:] * before * inner_products[1:]
    return np.maximum(np.cumsum(steps)[:-1], 0.0) / before**2  # rounding may fall below zero


def _fit_eigenvalue(
    inner_products: Floats, weights: Floats, means_sq: Floats, grad_sq: float
) -> tuple[float, float]:
    """Fit ``w_k (a_k - |G|^2)^2 = lambda |m_k|^2``; also return its degrees of freedom."""
    own, before = weights[1:], np.cumsum(weights)[:-1]
    late = before / before.sum()  # late means are made of signal and noise as the last one is
    pairs = own * before
    centred = 1 - float(np.square(pairs / pairs.sum()).sum())  # |G|^2 is their mean over pairs
    scatter = own * (inner_products[1:] - grad_sq) ** 2
    total, expected = float(late @ scatter), float(late @ means_sq)
    if total <= 0 or expected <= 0 or centred <= 0:
        return 0.0, 1.0
    residuals = late * (scatter - total / expected * means_sq)
    degrees = 2 * total**2 / float(residuals @ residuals)  # of a chi-square with that scatter
    return total / expected / centred, min(max(degrees, 1.0), float(len(own)))


def _fit_covariance(deviations: Floats, traces: Floats, before: Floats) -> float:
    """``W`` times the covariance of both parts, from how ``a_k`` and ``|g_k - m_k|^2`` go along."""
    late = before / before.sum()  # a_k is the better, the more gradients came before
    return 2 * float(late @ (deviations * (traces - late @ traces)))


def _degrees_of_variance(sample: Floats) -> float:
    """Degrees of freedom of a sample variance, by the sample's kurtosis."""
    squared = (sample - sample.mean()) ** 2
    if not squared.any():
        return 1.0
    excess = float(np.square(squared).mean() / squared.mean() ** 2) - 1
    return min(max(2 * len(sample) / max(excess, 1e-9), 2.0), len(sample) - 1.0)


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
