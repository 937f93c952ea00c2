"""Oracle: what a ring sends, by hand (rung 1), and laws of the candidates (rung 4)."""

from dataclasses import replace

import numpy as np
import pytest

from rightbatch.hardware.step_curve import StepCurve, optimizer_seconds
from rightbatch.plan import plan
from rightbatch.plan.candidates import Way, draw_times, list_ways, step_seconds
from rightbatch.plan.step_model import allreduce_seconds
from rightbatch.results import StepShares, ThroughputProfile
from tests.plan.made_up import critical, facts, memory, throughput


@pytest.mark.parametrize(("devices", "share"), [(1, 0.0), (2, 1.0), (4, 1.5), (8, 1.75)])
def test_a_ring_sends_the_gradient_almost_twice(devices: int, share: float) -> None:
    one_pass = 1000 * 32 / 5e9  # 1,000 parameters of 32 bits, at 5 gigabits a second
    assert allreduce_seconds(1000, devices, 5.0) == pytest.approx(share * one_pass, rel=1e-12)


def test_the_all_reduce_comes_once_a_step_however_much_is_accumulated() -> None:
    million = facts(parameters=10**6)
    made = plan(throughput(), critical(1e5), million, devices=[1, 2], allreduce_gbps=3.2)
    for c in made.candidates:
        passes = c.accumulation_steps * (0.01 + 0.001 * c.micro_batch_size)
        expected = 0.01 if c.devices == 2 else 0.0  # 1e6 * 32 bits at 3.2e9 a second, once
        assert c.communication_seconds == pytest.approx(expected, rel=1e-12)
        assert c.step_seconds == pytest.approx(passes + expected, rel=1e-9)
        assert c.batch_size == c.micro_batch_size * c.accumulation_steps * (c.devices or 0)
    assert any(c.accumulation_steps > 1 and c.devices == 2 for c in made.candidates)


def bent(spread: float = 0.0) -> ThroughputProfile:
    """Flat up to a knee at 24: 10 ms a step, then in proportion. No size between was timed."""
    seconds = {b: 0.01 * (1 + (b / 24) ** 4) ** 0.25 for b in (8, 16, 32, 64)}
    plain = throughput(sizes=tuple(seconds))
    points = tuple(
        replace(p, step_seconds=s, low=s * (1 - spread), high=s * (1 + spread), total_seconds=s)
        for p, s in zip(plain.points, seconds.values(), strict=True)
    )
    return replace(plain, points=points)


def test_between_the_measured_sizes_a_plan_reads_the_curve_that_throughput_reads() -> None:
    """Today's 24 examples were not timed; a chord would say 5 % more than the curve."""
    profile = bent()
    ways = (Way(24, 24, 1, True), Way(96, 24, 4, True))
    at_24, _, _ = StepCurve.training(profile.points).at(24)
    assert step_seconds(ways, profile) == pytest.approx([at_24, 4 * at_24], rel=1e-12)
    drawn = draw_times(ways[:1], profile, np.zeros(3), np.random.default_rng(0))
    assert drawn == pytest.approx(np.full((3, 1), at_24), rel=1e-12)
    chord = (profile.points[1].step_seconds + profile.points[2].step_seconds) / 2
    assert at_24 < 0.97 * chord


def test_drawn_times_are_read_from_a_curve_through_the_drawn_points() -> None:
    """At a measured size the draws spread as its interval says, between two of them less."""
    ways = (Way(16, 16, 1, True), Way(24, 24, 1, True))
    drawn = draw_times(ways, bent(spread=0.2), np.zeros(4000), np.random.default_rng(0))
    low, middle, high = np.quantile(drawn, [0.025, 0.5, 0.975], axis=0)
    assert middle == pytest.approx(step_seconds(ways, bent()), rel=0.02)
    widths = np.log(high / low)
    assert widths[0] == pytest.approx(np.log(1.2 / 0.8), rel=0.06)
    assert 0.5 * widths[0] < widths[1] < 0.95 * widths[0]


@pytest.mark.parametrize("size", [7, 65])
def test_no_way_reads_beyond_the_measured_sizes(size: int) -> None:
    with pytest.raises(ValueError, match=f"range 8 to 64, got {size}"):
        step_seconds((Way(size, size, 1, True),), bent())
    with pytest.raises(ValueError, match=f"range 8 to 64, got {size}"):
        draw_times((Way(size, size, 1, True),), bent(), np.ones(3), np.random.default_rng(0))
    ways = list_ways(bent(), None, devices=1, examples=None, current_batch_size=size)
    assert all(8 <= way.micro_batch_size <= 64 for way in ways)


def with_optimizer(share: float) -> ThroughputProfile:
    """Seconds as always, of which the optimizer takes a share of the step at 64."""
    shares = StepShares(batch_size=64, forward=0.0, backward=1 - share, optimizer=share)
    return replace(throughput(sizes=(16, 32, 64)), shares=shares)


def test_the_optimizer_comes_once_a_step_where_its_share_was_measured() -> None:
    made = plan(with_optimizer(0.2), critical(1e5), facts(), memory(32))
    optimizer = 0.2 * 0.074  # seconds of a step at 64: 10 ms + 64 x 1 ms
    assert any(c.accumulation_steps > 1 for c in made.candidates)
    for c in made.candidates:
        one_pass = 0.01 + 0.001 * c.micro_batch_size
        expected = c.accumulation_steps * (one_pass - optimizer) + optimizer
        assert c.step_seconds == pytest.approx(expected, rel=1e-9)
    today, chosen = (
        made.candidates[0],
        next(c for c in made.candidates if c.batch_size == made.batch_size),
    )
    assert made.speedup == pytest.approx(today.relative_time / chosen.relative_time, rel=1e-9)


def test_the_optimizer_never_takes_longer_than_a_whole_step() -> None:
    made = plan(with_optimizer(0.9), critical(1e5), facts(), memory(32))
    assert all(c.step_seconds > 0 for c in made.candidates)
    steps = [c.step_seconds for c in made.candidates if c.micro_batch_size == 32]
    assert steps == sorted(steps)
    assert optimizer_seconds(with_optimizer(0.9)) == pytest.approx(0.026)


@pytest.mark.parametrize(("size", "seconds"), [(128, 0.074), (4, 0.026), (48, 0.058)])
def test_shares_of_a_size_beyond_the_measured_ones_count_at_the_nearest(
    size: int, seconds: float
) -> None:
    """A step takes 10 ms + 1 ms an example, timed from 16 to 64; a tenth is the optimizer."""
    shares = StepShares(batch_size=size, forward=0.4, backward=0.5, optimizer=0.1)
    profile = replace(throughput(sizes=(16, 32, 64)), shares=shares)
    assert optimizer_seconds(profile) == pytest.approx(0.1 * seconds)


def test_the_best_micro_batch_allows_for_the_optimizer() -> None:
    """At 32: one pass of 19 ms, or two of 10 ms; 16 ms once the optimizer's 4 come only once."""
    plain = throughput(sizes=(16, 32))
    seconds = {16: 0.010, 32: 0.019}
    points = tuple(
        replace(p, step_seconds=seconds[p.batch_size], total_seconds=seconds[p.batch_size])
        for p in plain.points
    )
    shares = StepShares(batch_size=16, forward=0.2, backward=0.4, optimizer=0.4)
    for known, micro in ((None, 32), (shares, 16)):
        made = plan(replace(plain, points=points, shares=known), critical(100.0))
        (at_32,) = (c for c in made.candidates if c.batch_size == 32)
        assert at_32.micro_batch_size == micro
    assert at_32.step_seconds == pytest.approx(0.016)


def test_times_on_several_devices_are_marked_as_assumed() -> None:
    made = plan(throughput(), critical(5000.0), facts(), devices=[1, 4], allreduce_gbps=100.0)
    assert {(c.devices, c.assumed) for c in made.candidates} == {(1, False), (4, True)}
    assert {(p.devices, p.assumed) for p in made.front} == {(1, False), (4, True)}
    assert any("is assumed to take" in r and "100 gigabits" in r for r in made.reasons)
    assert made.warnings == ()


def test_free_communication_is_warned_of() -> None:
    made = plan(throughput(), critical(5000.0), facts(), devices=[1, 4])
    assert made.warnings[0].startswith("Communication counted as free")
    assert all(c.communication_seconds == 0 for c in made.candidates)
    assert plan(throughput(), critical(5000.0), facts()).warnings == ()


def test_slow_links_make_larger_batches_and_fewer_devices() -> None:
    large = facts(parameters=10**9)
    fast = plan(throughput(), critical(300.0), large, devices=[1, 8], allreduce_gbps=1e5)
    slow = plan(throughput(), critical(300.0), large, devices=[1, 8], allreduce_gbps=10.0)
    assert (fast.devices, slow.devices) == (8, 1)
    alone = plan(throughput(), critical(300.0), large, devices=8, allreduce_gbps=10.0)
    assert alone.batch_size > fast.batch_size


def test_a_bandwidth_without_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the number of parameters, got 100 and no Task"):
        plan(throughput(), critical(), devices=2, allreduce_gbps=100.0)
    assert plan(throughput(), critical(), devices=1, allreduce_gbps=100.0).devices == 1
