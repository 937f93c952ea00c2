"""Oracle: the definition of Fieller's set, tested ratio by ratio (rung 3)."""

import numpy as np
import pytest

from rightbatch._stats import fieller_interval

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
