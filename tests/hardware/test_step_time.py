"""What step times mean. Oracle: closed form (lines with known parts), and laws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rightbatch.hardware.step_time import (
    estimate_seconds,
    fit_step_line,
    reaches_plateau,
)
from rightbatch.results import ThroughputPoint


def point(
    batch_size: int, step_seconds: float, *, load_seconds: float = 0.0, spread: float = 0.0
) -> ThroughputPoint:
    return ThroughputPoint(
        batch_size=batch_size,
        step_seconds=step_seconds,
        low=step_seconds * (1 - spread),
        high=step_seconds * (1 + spread),
        load_seconds=load_seconds,
        total_seconds=step_seconds + load_seconds,
    )


def line(
    alpha: float, beta: float, sizes: tuple[int, ...] = (4, 8, 16, 64), **options: float
) -> list[ThroughputPoint]:
    return [point(size, alpha + beta * size, **options) for size in sizes]


@given(
    alpha=st.floats(1e-6, 10.0),
    half=st.floats(0.5, 1e4),
    sizes=st.sets(st.integers(1, 4096), min_size=2, max_size=10),
)
def test_a_straight_line_is_recovered(alpha: float, half: float, sizes: set[int]) -> None:
    fitted = fit_step_line(line(alpha, alpha / half, tuple(sorted(sizes))))
    assert fitted[0] == pytest.approx(alpha, rel=1e-3)
    assert fitted[1] == pytest.approx(alpha / half, rel=1e-3)
    assert fitted[2] == pytest.approx(half, rel=1e-3)


def test_a_line_through_the_origin_has_no_fixed_part() -> None:
    alpha, beta, half = fit_step_line(line(0.0, 0.25))
    assert alpha == pytest.approx(0.0, abs=1e-12)
    assert beta == pytest.approx(0.25)
    assert half == pytest.approx(0.0, abs=1e-11)


def test_neither_part_is_ever_negative() -> None:
    falling = [point(4, 2.0), point(8, 1.0)]
    alpha, beta, half = fit_step_line(falling)
    assert (alpha > 0, beta, half) == (True, 0.0, None)
    steep = [point(4, 1.0), point(8, 4.0)]
    alpha, beta, half = fit_step_line(steep)
    assert (alpha, beta > 0, half) == (0.0, True, 0.0)


def test_errors_count_relative_to_the_time_not_in_seconds() -> None:
    """Ten percent off at the largest size must not drown the fixed part of the small ones."""
    points = line(1.0, 1.0, (1, 2, 4, 1000))
    points[-1] = point(1000, 1.1 * 1001)
    assert fit_step_line(points)[0] == pytest.approx(1.0, abs=0.15)  # 0.77 if not


@pytest.mark.parametrize(("spread", "resolved"), [(0.01, True), (0.2, False)])
def test_a_slope_within_the_doubt_is_not_resolved(spread: float, resolved: bool) -> None:
    half = fit_step_line(line(1.0, 0.005, spread=spread))[2]
    assert (half is not None) == resolved


def test_one_size_has_no_slope() -> None:
    assert fit_step_line([point(8, 0.5)]) == (0.5, 0.0, None)


def test_disturbed_rounds_do_not_move_the_estimate() -> None:
    rng = np.random.default_rng(0)
    value, low, high = estimate_seconds([1.0] * 6 + [5.0, 7.0, 9.0, 30.0], rng)
    assert (value, low) == (1.0, 1.0)
    assert high < 10


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=12), st.integers(0, 5))
def test_the_interval_holds_the_estimate_and_scales_with_the_times(
    samples: list[float], seed: int
) -> None:
    value, low, high = estimate_seconds(samples, np.random.default_rng(seed))
    assert low <= value <= high
    if len(samples) >= 10:  # resampled: only what was seen
        assert min(samples) <= low
        assert high <= max(samples)
    doubled = estimate_seconds([2 * s for s in samples], np.random.default_rng(seed))
    assert doubled == pytest.approx((2 * value, 2 * low, 2 * high))


def test_the_interval_covers_the_quantile_it_is_about() -> None:
    """19 of 20, over 200 repeats of 30 rounds; the standard error of the count is about 3."""
    rng = np.random.default_rng(1)
    true = float(np.quantile(rng.gamma(2.0, size=10**6), 0.2))
    hits = 0
    for _ in range(200):
        _, low, high = estimate_seconds(rng.gamma(2.0, size=30).tolist(), rng)
        hits += low <= true <= high
    assert hits >= 190 - 20


PLATEAUS = {
    "one doubling": ([(8, 100.0), (16, 101.0)], False),
    "two flat doublings": ([(8, 100.0), (16, 101.0), (32, 102.0)], True),
    "the second gains": ([(8, 100.0), (16, 101.0), (32, 107.0)], False),
    "the first gains": ([(8, 100.0), (16, 106.0), (32, 107.0)], False),
    "falling": ([(8, 100.0), (16, 90.0), (32, 80.0)], True),
    "a size between": ([(8, 50.0), (16, 100.0), (20, 100.0), (32, 101.0), (64, 102.0)], True),
    "too close together": ([(8, 100.0), (9, 100.0), (10, 100.0)], False),
}


@pytest.mark.parametrize(("rates", "reached"), PLATEAUS.values(), ids=PLATEAUS)
def test_the_plateau_is_two_doublings_without_gain(
    rates: list[tuple[int, float]], reached: bool
) -> None:
    assert reaches_plateau(rates) is reached


@pytest.mark.parametrize("rounds", [2, 4, 6, 9])
def test_few_rounds_are_covered_too(rounds: int) -> None:
    """400 repeats at 95 %: fewer than 90 % or more than 99 % would be 4.5 standard errors off."""
    rng = np.random.default_rng(0)
    truth = np.exp(-0.8416 * 0.1)
    covered = 0
    for _ in range(400):
        _, low, high = estimate_seconds(np.exp(0.1 * rng.standard_normal(rounds)).tolist(), rng)
        covered += low <= truth <= high
    assert 0.90 <= covered / 400 <= 0.99
