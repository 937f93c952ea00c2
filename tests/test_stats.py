"""Oracle: the definition of Fieller's set, tested ratio by ratio (rung 3)."""

import math

import numpy as np
import pytest
from scipy import stats

from rightbatch._stats import Score, fieller_interval, fits, score_interval, skew_to_normal

Z2 = 1.959963984540054**2


@pytest.mark.parametrize("seed", range(40))
def test_the_interval_is_the_set_of_ratios_that_a_test_does_not_reject(seed: int) -> None:
    draw = np.random.default_rng(seed)
    numerator, denominator = abs(draw.normal(3, 2)) + 0.1, draw.normal(0.7, 1)
    var_numerator = draw.exponential(0.3) * min(1.0, numerator**2 / 4)
    var_denominator = draw.exponential(0.3)
    covariance = draw.uniform(-1, 1) * np.sqrt(var_numerator * var_denominator)
    low, high = fieller_interval(
        numerator,
        denominator,
        var_numerator=var_numerator,
        var_denominator=var_denominator,
        covariance=covariance,
    )
    ratios = np.concatenate([np.linspace(0, 60, 6001), [1e4, 1e7]])
    accepted = (numerator - ratios * denominator) ** 2 <= Z2 * (
        var_numerator - 2 * ratios * covariance + ratios**2 * var_denominator
    )
    if not accepted.any():
        pytest.skip("the denominator is clearly negative: no ratio is accepted")
    step = 0.02
    first, last = ratios[accepted][0], ratios[accepted][-1]
    assert low >= 60 if first > 60 else low == pytest.approx(first, abs=step)
    if last >= 60:
        assert high is None or high >= 60
    else:
        assert high == pytest.approx(last, abs=step)


def test_a_denominator_clearly_below_zero_bounds_nothing() -> None:
    assert fieller_interval(1.0, -5.0, var_numerator=0.01, var_denominator=0.01) == (0.0, None)


def test_fewer_degrees_of_freedom_widen_the_interval() -> None:
    few = fieller_interval(4.0, 2.0, var_numerator=0.04, var_denominator=0.01, degrees=4)
    many = fieller_interval(4.0, 2.0, var_numerator=0.04, var_denominator=0.01)
    assert few[0] < many[0] < 2 < many[1] < few[1]  # type: ignore[operator]


def test_a_negative_variance_is_refused() -> None:
    with pytest.raises(ValueError, match=r"var_denominator=-1\.0"):
        fieller_interval(1.0, 1.0, var_numerator=0.0, var_denominator=-1.0)


@pytest.mark.parametrize("true", [0.0, 0.01, 0.3, 1.0, 1.9, 2.5, 10.0])
@pytest.mark.parametrize("degrees", [3.0, 1e9])
def test_the_truth_is_rejected_exactly_as_often_as_promised(true: float, degrees: float) -> None:
    """Integrate the chance of all scores that fit, wherever the truth lies."""
    scores = np.linspace(-60, 60, 12001)
    accepted = np.array([fits(Score(x, distance=true, degrees=degrees)) for x in scores])
    middles = scores[:-1] + 0.005
    chances = np.diff(stats.t.cdf(scores, degrees))
    kept = accepted[:-1] & accepted[1:]
    edges = accepted[:-1] ^ accepted[1:]
    assert chances[kept].sum() + chances[edges].sum() / 2 == pytest.approx(0.95, abs=2.5e-3)
    assert np.ptp(np.flatnonzero(accepted)) == accepted.sum() - 1, middles  # one piece


def interval_of(estimate: float, error: float) -> tuple[float, float | None]:
    """Interval of the inverse of a quantity with a known error."""
    return score_interval(
        lambda x: Score((estimate - x) / error, x / error, 1e9), start=max(estimate, error)
    )


@pytest.mark.parametrize("estimate", [-2.0, -0.5, 0.0, 1.0, 1.7, 3.0, 50.0])
def test_the_score_interval_is_the_set_of_ratios_that_fit(estimate: float) -> None:
    low, high = interval_of(estimate, 1.0)
    inverses = np.linspace(0, 60, 60001)
    accepted = [x for x in inverses if fits(Score(estimate - x, x, 1e9))]
    assert 1 / low == pytest.approx(accepted[-1], abs=2e-3)
    if high is None:
        assert accepted[0] == 0.0
    else:
        assert 1 / high == pytest.approx(accepted[0], abs=2e-3)


def test_an_estimate_far_below_zero_bounds_nothing() -> None:
    assert interval_of(-4.0, 1.0) == (0.0, None)


@pytest.mark.parametrize("degrees", [4, 20, 200])
@pytest.mark.parametrize("chance", [0.025, 0.5, 0.95, 0.975])
def test_a_chi_square_becomes_normal(degrees: int, chance: float) -> None:
    value = float(stats.chi2.ppf(chance, degrees) - degrees) / math.sqrt(2 * degrees)
    skewness = math.sqrt(8 / degrees)
    assert skew_to_normal(value, skewness=skewness) == pytest.approx(
        float(stats.norm.ppf(chance)), abs=0.06
    )
    assert skew_to_normal(value, skewness=0.0) == value
