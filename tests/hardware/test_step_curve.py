"""Between measured sizes. Oracle: closed form (lines, shapes, divisors by hand), and laws."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rightbatch.hardware.step_curve import (
    StepCurve,
    best_micro_batch,
    fit_step_shape,
    interpolate,
)
from rightbatch.results import Status, StepShares, ThroughputPoint, ThroughputProfile

DOUBLINGS = (4, 8, 16, 32, 64, 128)


def point(size: int, seconds: float, *, load: float = 0.0, doubt: float = 0.0) -> ThroughputPoint:
    return ThroughputPoint(
        batch_size=size,
        step_seconds=seconds,
        low=seconds * (1 - doubt),
        high=seconds * (1 + doubt),
        load_seconds=load,
        total_seconds=seconds + load,
    )


def profile(points: list[ThroughputPoint]) -> ThroughputProfile:
    return ThroughputProfile(
        points=tuple(points),
        alpha_seconds=0.0,
        beta_seconds_per_example=0.0,
        half_batch_size=None,
        bottleneck="mixed",
        status=Status.OK,
    )


def shape(size: float, *, alpha: float, beta: float, sharpness: float) -> float:
    return (alpha**sharpness + (beta * size) ** sharpness) ** (1 / sharpness)


@given(
    alpha=st.floats(0.0, 10.0),
    beta=st.floats(1e-6, 10.0),
    sizes=st.sets(st.integers(1, 4096), min_size=2, max_size=9),
    where=st.floats(0.0, 1.0),
)
def test_a_straight_line_is_read_exactly_and_without_doubt(
    alpha: float, beta: float, sizes: set[int], where: float
) -> None:
    points = [point(size, alpha + beta * size) for size in sorted(sizes)]
    size = min(sizes) + where * (max(sizes) - min(sizes))
    value, low, high = StepCurve.computing(points).at(size)
    assert value == pytest.approx(alpha + beta * size, rel=1e-6)
    if len(sizes) > 2:
        assert (low, high) == (pytest.approx(value, rel=1e-6), pytest.approx(value, rel=1e-6))
    assert low <= value <= high


@given(
    sharpness=st.floats(1.0, 16.0),
    knee=st.floats(2.0, 300.0),
    doubt=st.floats(0.0, 0.05),
    where=st.floats(0.0, 1.0),
)
def test_a_convex_curve_lies_within_its_interval(
    sharpness: float, knee: float, doubt: float, where: float
) -> None:
    truth = {"alpha": 1.0, "beta": 1 / knee, "sharpness": sharpness}
    points = [point(size, shape(size, **truth), doubt=doubt) for size in DOUBLINGS]
    size = DOUBLINGS[0] + where * (DOUBLINGS[-1] - DOUBLINGS[0])
    value, low, high = StepCurve.computing(points).at(size)
    assert low <= value <= high
    assert low <= shape(size, **truth) * (1 + 1e-9)
    assert shape(size, **truth) <= high * (1 + 1e-9)
    assert value == pytest.approx(shape(size, **truth), rel=0.1)


@given(st.lists(st.floats(1e-3, 10.0), min_size=2, max_size=6))
def test_whatever_was_measured_the_curve_never_falls(seconds: list[float]) -> None:
    points = [point(size, s) for size, s in zip(DOUBLINGS, seconds, strict=False)]
    curve = StepCurve.computing(points)
    read = [curve.at(size) for size in range(4, points[-1].batch_size + 1)]
    for one, other in itertools.pairwise(value for value, _, _ in read):
        assert one <= other * (1 + 1e-9)
    assert all(low <= value <= high for value, low, high in read)


def test_a_busy_spell_at_one_size_is_lowered_to_the_next() -> None:
    curve = StepCurve.computing([point(4, 1.0), point(8, 9.0), point(16, 3.0)])
    assert curve.at(8)[0] == 3.0


def test_no_size_takes_longer_than_the_upper_end_of_a_larger_one() -> None:
    """Nor does doubt at a small size make a larger one doubtful."""
    points = [point(4, 1.0, doubt=0.1), point(8, 2.0, doubt=0.9), point(16, 2.2, doubt=0.05)]
    curve = StepCurve.computing([*points, point(32, 4.0, doubt=0.05)])
    assert curve.high.tolist() == pytest.approx([1.1, 2.31, 2.31, 4.2])
    assert curve.low.tolist() == pytest.approx([0.2, 0.2, 2.09, 3.8])


def test_where_it_is_not_convex_monotony_alone_bounds_it() -> None:
    """Four times as long at twice the size, then flat: at 12 anything from 4 to 4.2 may be."""
    points = [point(4, 1.0), point(8, 4.0, doubt=0.1), point(16, 4.2, doubt=0.1)]
    value, low, high = StepCurve.computing(points).at(12)
    assert (low, high) == (pytest.approx(3.6), pytest.approx(4.62))
    assert 4.0 <= value <= 4.2


def test_a_knee_between_two_sizes_is_bounded_by_both_lines() -> None:
    """Flat at 2 up to 16, then 0.5 an example: the lines meet at (20, 2), the chord is 4 at 24."""
    points = [point(8, 2.0), point(16, 2.0), point(32, 6.0), point(64, 16.0)]
    value, low, high = StepCurve.computing(points).at(24)
    assert low == pytest.approx(6.0 - 8 * 10 / 32)
    assert high == pytest.approx(4.0)
    assert low <= value <= high


KINKS = (4, 6, 8, 12, 16, 24, 32)  # of which every other one is measured


@st.composite
def convex_seconds(draw: st.DrawFn) -> list[float]:
    """Times at all kinks, rising by more an example from each to the next."""
    more = st.sampled_from([0.0, 0.1, 0.5, 2.0])
    slopes = np.cumsum([draw(more) for _ in KINKS[1:]])
    first = draw(st.floats(0.1, 10.0))
    return [first, *(first + np.cumsum(slopes * np.diff(KINKS))).tolist()]


@given(seconds=convex_seconds(), truth=convex_seconds(), between=st.sampled_from([1, 3, 5]))
def test_every_convex_curve_through_the_intervals_lies_within(
    seconds: list[float], truth: list[float], between: int
) -> None:
    """Whatever was measured, and whichever of the ends is the truth at a size."""
    ends = list(zip(KINKS, seconds, truth, strict=True))[::2]
    points = [replace(point(b, s), low=min(s, t), high=max(s, t)) for b, s, t in ends]
    value, low, high = StepCurve.computing(points).at(KINKS[between])
    assert low <= value <= high
    assert low <= truth[between] * (1 + 1e-9)
    assert truth[between] <= high * (1 + 1e-9)


@settings(max_examples=400)
@given(
    seconds=st.lists(st.floats(0.1, 10.0), min_size=4, max_size=4) | convex_seconds(),
    doubts=st.tuples(*[st.sampled_from([(0.0, 0.0), (0.1, 0.1), (0.5, 0.0), (0.0, 0.5)])] * 4),
    index=st.integers(0, 3),
    more=st.sampled_from([(0.3, 0.0), (0.9, 0.0), (0.0, 0.3), (0.0, 4.0), (0.5, 0.5)]),
    size=st.sampled_from([4, 5, 6, 8, 11, 12, 16, 23, 24, 31, 32]),
)
def test_more_doubt_about_a_point_never_narrows_the_interval(
    seconds: list[float],
    doubts: tuple[tuple[float, float], ...],
    index: int,
    more: tuple[float, float],
    size: int,
) -> None:
    measured = seconds if len(seconds) == 4 else seconds[::2]
    points = [
        replace(point(b, s), low=s * (1 - below), high=s * (1 + above))
        for b, s, (below, above) in zip(KINKS[::2], measured, doubts, strict=True)
    ]
    value, low, high = StepCurve.computing(points).at(size)
    doubted, (below, above) = points[index], more
    points[index] = replace(doubted, low=doubted.low * (1 - below), high=doubted.high * (1 + above))
    again, lower, higher = StepCurve.computing(points).at(size)
    assert again == value
    assert lower <= low * (1 + 1e-9)
    assert higher >= high * (1 - 1e-9)


@pytest.mark.parametrize("low", [1.0, 0.5, 0.1])
def test_a_line_is_prolonged_from_the_upper_end_of_the_farther_point(low: float) -> None:
    """From (4, 1) through (8, 2) the line is at 3 for 12, however low the first point may be."""
    points = [replace(point(4, 1.0), low=low), point(8, 2.0), point(16, 6.0)]
    assert StepCurve.computing(points).at(12)[1] == pytest.approx(3.0)
    points[0] = replace(points[0], high=1.8)
    assert StepCurve.computing(points).at(12)[1] == pytest.approx(2.2)


def test_of_a_farther_point_to_the_right_too_the_upper_end_counts() -> None:
    """From (32, 12) back through (16, 6) the line is at 4.5 for 12, from (32, 14) at 4."""
    points = [point(4, 2.0), point(8, 3.0), point(16, 6.0), point(32, 12.0)]
    assert StepCurve.computing(points).at(12)[1] == pytest.approx(4.5)
    points[3] = replace(points[3], low=6.0, high=14.0)
    assert StepCurve.computing(points).at(12)[1] == pytest.approx(4.0)


@pytest.mark.parametrize("size", [3, 129, 3.99])
def test_nothing_is_extrapolated(size: float) -> None:
    curve = StepCurve.computing([point(size, 1.0 + size) for size in DOUBLINGS])
    with pytest.raises(ValueError, match=f"range 4 to 128, got {size:g}"):
        curve.at(size)


@given(st.lists(st.lists(st.floats(1e-3, 10.0), min_size=4, max_size=4), min_size=1, max_size=5))
def test_many_curves_at_once_are_read_as_each_alone(rows: list[list[float]]) -> None:
    sizes, wanted = np.array([4.0, 8.0, 16.0, 32.0]), [32, 5, 8, 12, 31, 4]
    together = interpolate(sizes, np.array(rows), wanted)
    assert together.shape == (len(rows), len(wanted))
    for row, read in zip(rows, together, strict=True):
        alone = [float(interpolate(sizes, np.array(row), [size])[0]) for size in wanted]
        assert read.tolist() == alone
        assert (read[0], read[2], read[5]) == (row[3], row[1], row[0])


@pytest.mark.parametrize("sharpness", [1.5, 4.0])
def test_a_bent_curve_is_read_better_than_by_chords(sharpness: float) -> None:
    """Why not straight lines: half way between doublings they miss a bend by up to 7 %."""
    truth = {"alpha": 1.0, "beta": 1 / 24, "sharpness": sharpness}
    points = [point(size, shape(size, **truth)) for size in DOUBLINGS]
    wanted = [size * 1.5 for size in DOUBLINGS[:-1]]
    exact = np.array([shape(size, **truth) for size in wanted])
    curve = StepCurve.computing(points)
    chords = np.interp(wanted, curve.sizes, curve.seconds)
    assert abs(curve.read(wanted) / exact - 1).max() < 0.5 * abs(chords / exact - 1).max()


def test_one_measured_size_answers_for_itself_alone() -> None:
    curve = StepCurve.computing([point(8, 2.0, doubt=0.1)])
    assert curve.at(8) == pytest.approx((2.0, 1.8, 2.2))
    with pytest.raises(ValueError, match=r"range 8 to 8, got 9\."):
        curve.read([8, 9])


def test_a_size_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match=r"range 4 to 8, got nan\."):
        StepCurve.computing([point(4, 1.0), point(8, 2.0)]).read([4, math.nan])


def test_loading_is_part_of_what_training_pays() -> None:
    points = [point(size, 1.0 + size, load=0.5 * size, doubt=0.1) for size in (4, 8, 16)]
    value, low, high = StepCurve.training(points).at(8)
    assert (value, low, high) == pytest.approx((13.0, 12.1, 13.9))
    assert StepCurve.computing(points).at(8)[0] == 9.0


# The shape.


@pytest.mark.parametrize("sharpness", [0.8, 1.0, 2.0, 8.0])
@pytest.mark.parametrize("knee", [10.0, 60.0])
def test_a_shape_is_recovered(sharpness: float, knee: float) -> None:
    truth = {"alpha": 0.003, "beta": 0.003 / knee, "sharpness": sharpness}
    fitted = fit_step_shape([point(size, shape(size, **truth)) for size in (1, *DOUBLINGS, 1024)])
    assert fitted is not None
    assert fitted.alpha_seconds == pytest.approx(truth["alpha"], rel=1e-3)
    assert fitted.beta_seconds_per_example == pytest.approx(truth["beta"], rel=1e-3)
    assert fitted.sharpness == pytest.approx(sharpness, rel=1e-2)
    assert fitted.residual < 1e-4


def test_the_residual_is_the_typical_relative_error() -> None:
    """A line with errors of 10 % up and down in turn leaves about 10 %."""
    points = [point(size, (1 + size) * 1.1 ** (-1) ** i) for i, size in enumerate(DOUBLINGS)]
    fitted = fit_step_shape(points)
    assert fitted is not None
    assert 0.05 < fitted.residual <= math.log(1.1) * (1 + 1e-6)


def test_three_sizes_have_no_shape() -> None:
    assert fit_step_shape([point(size, 1.0) for size in (4, 8, 16)]) is None


@given(st.lists(st.floats(1e-6, 10.0), min_size=4, max_size=6))
def test_any_times_give_a_finite_shape(seconds: list[float]) -> None:
    fitted = fit_step_shape([point(b, s) for b, s in zip(DOUBLINGS, seconds, strict=False)])
    assert fitted is not None
    assert all(
        math.isfinite(part)
        for part in (fitted.alpha_seconds, fitted.beta_seconds_per_example, fitted.residual)
    )
    assert fitted.sharpness * (1 + 1e-9) >= 0.5


# The best micro-batch.


def test_the_largest_micro_batch_is_not_always_the_fastest() -> None:
    """Past 16 a pass costs more an example: 96 is made of 6 passes of 16, not 3 of 32."""
    times = {4: 3.0, 8: 4.0, 16: 6.0, 32: 20.0}
    assert best_micro_batch(profile([point(b, t) for b, t in times.items()]), 96) == 16


def test_a_fixed_cost_asks_for_the_largest_divisor_in_range() -> None:
    points = [point(size, 1.0 + 0.1 * size) for size in (4, 8, 16, 32)]
    assert best_micro_batch(profile(points), 90) == 30  # of 5 6 9 10 15 18 30
    assert best_micro_batch(profile(points), 12) == 12


def test_the_optimizer_steps_once_however_many_passes() -> None:
    """For 64: 8 passes of 8 take 164, 4 of 16 164, 2 of 32 172, one of 64 180; 100 is added once.

    Steps of 108, 116, 136 and 180 ms, of which the optimizer takes 100.
    """
    times = {8: 108.0, 16: 116.0, 32: 136.0, 64: 180.0}
    plain = profile([point(b, t) for b, t in times.items()])
    shares = StepShares(batch_size=64, forward=0.2, backward=0.8 - 5 / 9, optimizer=5 / 9)
    assert best_micro_batch(replace(plain, shares=shares), 64) == 16
    assert best_micro_batch(plain, 64) == 64


def test_of_equally_fast_micro_batches_the_larger_is_taken() -> None:
    points = [point(size, 0.5 * size) for size in (4, 8, 16)]
    assert best_micro_batch(profile(points), 48) == 16


def test_loading_counts_for_the_micro_batch() -> None:
    """Computing is fastest at 16, but its loading is slow."""
    points = [point(4, 4.0), point(8, 7.0), point(16, 13.0, load=9.0)]
    assert best_micro_batch(profile(points), 16) == 8


@given(alpha=st.floats(1e-3, 10.0), knee=st.floats(1.0, 200.0), batch=st.integers(4, 4096))
def test_it_is_the_least_over_all_divisors(alpha: float, knee: float, batch: int) -> None:
    points = [
        point(b, shape(b, alpha=alpha, beta=alpha / knee, sharpness=2.0) + b * b * 1e-3 * alpha)
        for b in DOUBLINGS
    ]
    divisors = [m for m in range(4, 129) if batch % m == 0]
    assume(divisors)
    curve = StepCurve.training(points)
    best = best_micro_batch(profile(points), batch)
    assert batch % best == 0
    costs = {m: curve.at(m)[0] * batch / m for m in divisors}
    assert costs[best] == pytest.approx(min(costs.values()))


def test_a_batch_without_a_measured_divisor_is_refused() -> None:
    points = [point(size, 1.0) for size in (4, 8)]
    with pytest.raises(ValueError, match=r"range 4 to 8, got batch_size=11\."):
        best_micro_batch(profile(points), 11)


def test_times_of_numpy_are_answered_with_plain_floats() -> None:
    curve = StepCurve.computing([point(size, float(np.float64(size))) for size in (4, 8, 16)])
    assert [type(part) for part in curve.at(6)] == [float, float, float]
