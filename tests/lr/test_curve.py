"""Oracles: closed form for each rule; laws of smoothing; hand-made sweeps."""

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch

from rightbatch.lr.curve import (
    Reading,
    Sweep,
    combine,
    edge_of,
    log_spaced,
    noise_of_smoothed,
    read,
    smooth,
    steepest_fall,
)
from rightbatch.results import Status

RATES = log_spaced(1e-3, 10.0, 41)  # ten to a decade


def sweep(losses: Sequence[float], start: float = 1.0) -> Sweep:
    return Sweep(start=start, rates=RATES[: len(losses)], losses=tuple(losses))


def noise(count: int, seed: int = 0) -> list[float]:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)).tolist()


def test_rates_are_evenly_spaced_in_their_logarithm() -> None:
    ratios = [b / a for a, b in pairwise(RATES)]
    assert (RATES[0], RATES[-1]) == pytest.approx((1e-3, 10.0))
    assert ratios == pytest.approx([10**0.1] * 40)


@pytest.mark.parametrize("count", [1, 2, 3, 50])
@pytest.mark.parametrize("half_width", [0.5, 1.0, 7.0])
def test_smoothing_leaves_a_constant_alone_up_to_both_ends(count: int, half_width: float) -> None:
    assert smooth([0.7] * count, half_width) == pytest.approx([0.7] * count, rel=1e-14)


def test_smoothing_does_not_delay_a_straight_line() -> None:
    line = [float(index) for index in range(30)]
    assert smooth(line, 2.0)[4:-4] == pytest.approx(line[4:-4], rel=1e-12)


def test_smoothing_is_the_same_backwards() -> None:
    losses = noise(25)
    assert smooth(losses[::-1], 1.5)[::-1] == pytest.approx(smooth(losses, 1.5), rel=1e-12)


def test_an_explosion_stays_out_of_averages_two_half_widths_away() -> None:
    assert smooth([1.0] * 20 + [1e30], 2.0)[:16] == pytest.approx([1.0] * 16)


def test_the_noise_estimate_is_the_scatter_of_smoothed_noise() -> None:
    """4,000 draws leave it 3 %; a tenth is three times that."""
    losses = noise(4000)
    smoothed = torch.tensor(smooth(losses, 2.0)[4:-4])
    assert noise_of_smoothed(losses, 2.0) == pytest.approx(smoothed.std().item(), rel=0.1)


@pytest.mark.parametrize("losses", [[1.0], [8.0, 4.0, 0.1, 0.0], [3.0, 3.0, 3.0]])
def test_a_loss_that_only_falls_has_no_noise(losses: list[float]) -> None:
    assert noise_of_smoothed(losses, 2.0) == 0.0


def test_the_edge_is_the_last_rate_that_is_as_good_as_the_best() -> None:
    smoothed = [5.0, 2.0, 1.0, 1.05, 1.3, 9.0]
    rates = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert edge_of(rates, smoothed, noise=0.0, exploded=False) == 3.0
    assert edge_of(rates, smoothed, noise=0.02, exploded=False) == 4.0


def test_no_edge_where_the_loss_never_rises_by_more_than_its_noise() -> None:
    smoothed = [5.0, 2.0, 1.0, 1.3]
    assert edge_of([1.0, 2.0, 3.0, 4.0], smoothed, noise=0.06, exploded=False) is None
    assert edge_of([1.0, 2.0, 3.0, 4.0], smoothed, noise=0.04, exploded=False) == 3.0


def test_an_explosion_right_after_the_best_loss_is_an_edge() -> None:
    assert edge_of([1.0, 2.0], [2.0, 1.0], noise=0.0, exploded=True) == 2.0
    assert edge_of([1.0, 2.0], [2.0, 1.0], noise=0.0, exploded=False) is None


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_the_steepest_fall_does_not_depend_on_the_scale_of_rates_or_losses(scale: float) -> None:
    losses = [scale / (1 + (rate / 0.1) ** 2) for rate in RATES]  # steepest in log rate at 0.1
    rates = [scale * rate for rate in RATES]
    assert steepest_fall(rates, losses, noise=0.0) == pytest.approx(0.1 * scale)


def test_noise_at_tiny_rates_does_not_count_as_a_fall() -> None:
    """Per unit of rate the smallest would win: their differences are divided by 1e-4."""
    losses = [
        1 / (1 + (rate / 0.1) ** 2) + 1e-3 * x for rate, x in zip(RATES, noise(41), strict=True)
    ]
    found = steepest_fall(RATES, losses, noise=1e-3)
    assert found is not None
    assert 0.05 < found < 0.2


def test_no_suggestion_where_the_loss_nowhere_falls() -> None:
    assert steepest_fall(RATES, [1.0 + 0.01 * x for x in noise(41)], noise=0.01) is None
    reading = read(sweep([1.0] * 41), half_width=1.0)
    assert (reading.edge, reading.suggestion) == (None, None)


def test_a_sweep_that_never_rises_is_read_at_its_steepest_fall() -> None:
    reading = read(sweep([1 / (1 + (rate / 0.1) ** 2) for rate in RATES]), half_width=1.0)
    assert reading.edge is None
    assert reading.suggestion == pytest.approx(0.1, rel=0.3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_sweep_is_cut_at_the_first_loss_that_is_not_finite(bad: float) -> None:
    losses = [1.0] * 10 + [0.5] * 10 + [bad]
    reading = read(sweep(losses), half_width=1.0)
    assert reading.rates == RATES[:20]
    assert reading.edge == RATES[19]
    assert reading.suggestion == pytest.approx(RATES[19] / 4)


def test_a_sweep_that_diverges_at_once_says_nothing() -> None:
    reading = read(sweep([math.nan]), half_width=1.0)
    assert (reading.rates, reading.edge, reading.suggestion) == ((), None, None)


def test_how_high_a_sweep_explodes_leaves_no_trace() -> None:
    falling = [1.0] * 10 + [0.9**k for k in range(20)]
    low, high = (read(sweep([*falling, 2.0, height]), half_width=2.0) for height in (3.0, 1e30))
    assert low == high
    assert max(high.smoothed) <= 1.0 + 1e-9


def test_a_flat_noisy_start_does_not_hide_the_edge() -> None:
    """A trained model: any of the flat rates may have the lowest loss by chance."""
    losses = [1e-3 * (1 + 0.3 * x) for x in noise(30, seed=3)] + [0.01, 0.1, 1.0, 5.0]
    reading = read(sweep(losses, start=1e-3), half_width=1.0)
    assert reading.edge is not None
    assert RATES[24] <= reading.edge <= RATES[29]


def reading(suggestion: float | None, edge: float | None = 1.0, points: int = 3) -> Reading:
    rates = RATES[:points]
    return Reading(rates=rates, smoothed=(0.5,) * points, edge=edge, suggestion=suggestion)


def combined(*readings: Reading, in_time: bool = True):
    return combine(readings, batch_size=8, in_time=in_time, rates=RATES)


def test_repeats_are_joined_by_their_median_and_spread() -> None:
    curve = combined(reading(0.1, 0.4), reading(0.5, 2.0), reading(0.2, 0.8))
    assert (curve.suggestion, curve.low, curve.high) == pytest.approx((0.2, 0.1, 0.5))
    assert curve.edge == pytest.approx(0.8)
    assert curve.status is Status.OK


def test_two_repeats_are_joined_by_their_geometric_mean() -> None:
    assert combined(reading(0.1, 0.4), reading(0.4, 1.6)).suggestion == pytest.approx(0.2)


@pytest.mark.parametrize(("other", "status"), [(0.99, Status.OK), (1.0, Status.DISAGREE)])
def test_repeats_a_decade_apart_disagree(other: float, status: Status) -> None:
    curve = combined(reading(0.1), reading(0.3), reading(other))
    assert curve.status is status
    assert (curve.suggestion is None) == (status is Status.DISAGREE)
    assert (curve.low, curve.high) == (0.1, other)


def test_an_edge_that_most_repeats_did_not_see_is_none() -> None:
    seen, unseen = reading(0.1), reading(0.1, edge=None)
    assert combined(seen, unseen, unseen).edge is None
    assert combined(seen, unseen, unseen).status is Status.AT_THE_END
    assert combined(seen, seen, unseen).edge == pytest.approx(1.0)


def test_too_little_time_is_said_before_anything_else() -> None:
    assert combined(reading(0.1), reading(5.0), in_time=False).status is Status.OUT_OF_TIME
    curve = combined(in_time=False)
    assert (curve.points, curve.suggestion, curve.low) == ((), None, None)


def test_points_are_medians_over_the_repeats_that_got_that_far() -> None:
    readings = [
        Reading(rates=RATES[:n], smoothed=(loss,) * n, edge=None, suggestion=None)
        for n, loss in ((4, 1.0), (3, 5.0), (2, 3.0))
    ]
    points = combined(*readings).points
    assert [point.learning_rate for point in points] == list(RATES[:3])
    assert [(p.loss, p.low, p.high) for p in points] == [(3, 1, 5), (3, 1, 5), (3, 1, 5)]
