"""Oracles: the closed form sqrt(half x B_c), and brute force over the grid (rungs 1 and 2)."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rightbatch.plan import critical_batch_size, plan
from rightbatch.plan.critical import MODEL_LOG_SD, SWEEP_OVER_NOISE
from rightbatch.results import (
    CriticalBatchSize,
    LRCurve,
    LRRace,
    MemoryProfile,
    NoiseScale,
    NoiseTrack,
    Plan,
    RaceEntry,
    Results,
    Status,
)
from tests.plan.made_up import SIZES, critical, facts, memory, throughput


@given(
    half=st.sampled_from([2.0, 10.0, 50.0, 300.0]), ratio=st.sampled_from([0.25, 1.0, 4.0, 20.0])
)
def test_the_choice_is_near_the_closed_form(half: float, ratio: float) -> None:
    """b* = sqrt(half x B_c), rounded down to the smallest power of two within 5 %."""
    made = plan(throughput(alpha=0.001 * half), critical(half * ratio))
    best = min(max(math.sqrt(half * half * ratio), 1), 1024)

    def time(b: float) -> float:
        return (1 + half * ratio / b) * (half + b)

    assert time(made.batch_size) <= 1.13 * time(best)  # a power of two costs up to 6 %, a tie 5 %
    assert made.batch_size.bit_count() == 1


@pytest.mark.parametrize("value", [3.0, 40.0, 160.0, 5000.0])
def test_the_choice_is_the_smallest_power_of_two_within_five_percent(value: float) -> None:
    made = plan(throughput(), critical(value))
    times = {b: (1 + value / b) * (0.01 + 0.001 * b) for b in SIZES}
    near = [b for b, t in times.items() if t <= 1.05 * min(times.values())]
    assert made.batch_size == min(near)
    assert {c.batch_size: c.relative_time for c in made.candidates if c.batch_size in times} == (
        pytest.approx({b: t / min(times.values()) for b, t in times.items()}, rel=1e-9)
    )


def test_ties_are_said_and_the_smaller_is_taken() -> None:
    made = plan(throughput(), critical(160.0))  # b* = 40: 32 and 64 are equal in time
    assert made.batch_size == 32
    assert made.status is Status.TIE
    assert any("Cannot distinguish 32 from 64" in reason for reason in made.reasons)


def test_memory_caps_the_choice_and_says_so() -> None:
    made = plan(throughput(), critical(5000.0), memory(64))
    assert made.micro_batch_size <= 64
    assert not any(c.fits for c in made.candidates if c.micro_batch_size > 64)
    # Accumulation still reaches larger batches.
    assert made.batch_size == made.micro_batch_size * made.accumulation_steps * made.devices


def test_accumulation_is_chosen_only_where_memory_asks_for_it() -> None:
    loose = plan(throughput(), critical(5000.0))
    tight = plan(throughput(sizes=SIZES[:3]), critical(5000.0), memory(4))
    assert loose.accumulation_steps == 1
    assert tight.micro_batch_size == 4
    # alpha is paid in every pass: accumulation trades it for nothing, so the time is as at 4.
    assert tight.batch_size % 4 == 0


def test_no_size_beyond_the_data_set() -> None:
    made = plan(throughput(), critical(1e6), facts(examples=100, batch_size=16))
    assert max(c.batch_size for c in made.candidates) <= 100


def test_nothing_that_fits_is_an_error_with_a_remedy() -> None:
    with pytest.raises(ValueError, match=r"at most 0 examples do and the smallest size that was"):
        plan(throughput(), critical(), memory(0))


def test_devices_multiply_the_batch() -> None:
    made = plan(throughput(), critical(5000.0), facts(), devices=4)
    assert made.batch_size == 4 * made.micro_batch_size * made.accumulation_steps
    assert all(c.batch_size % 4 == 0 for c in made.candidates)
    assert any("communication was not measured" in reason for reason in made.reasons)


def test_today_is_the_baseline_of_the_speed_up() -> None:
    made = plan(throughput(), critical(5000.0), facts(batch_size=8))
    expected = ((1 + 5000 / 8) * 0.018) / (
        (1 + 5000 / made.batch_size) * (0.01 + made.batch_size / 1e3)
    )
    assert made.speedup == pytest.approx(expected, rel=1e-6)
    assert made.speedup_low == pytest.approx(expected, rel=1e-6)
    assert made.current is not None
    assert made.current.relative_time == made.speedup


def test_doubt_in_the_inputs_widens_the_speed_up_and_the_range() -> None:
    sure = plan(throughput(), critical(160.0), facts(batch_size=4))
    unsure = plan(
        throughput(spread=0.2), critical(160.0, low=20.0, high=1300.0), facts(batch_size=4)
    )
    assert unsure.speedup_low < sure.speedup < unsure.speedup_high  # type: ignore[operator]
    assert unsure.high is not None


def test_an_open_interval_leaves_the_range_open() -> None:
    made = plan(throughput(), critical(None, low=900.0, high=None))
    assert made.high is None
    assert made.batch_size >= 64


def test_the_race_at_the_chosen_size_decides_the_rate() -> None:
    race = LRRace(
        batch_size=32,
        entries=(RaceEntry(learning_rate=0.3, steps=9, loss=1.0, low=1.0, high=1.0),),
        suggestion=0.3,
        low=0.2,
        high=0.4,
        status=Status.OK,
    )
    made = plan(throughput(), critical(160.0), facts(), race)
    assert (made.batch_size, made.learning_rate) == (32, 0.3)
    assert made.hyperparameters == {"lr": 0.3, "momentum": 0.9}


def test_without_a_race_the_rate_is_scaled_and_capped_below_the_edge() -> None:
    curve = LRCurve(
        batch_size=16, points=(), edge=0.1, suggestion=0.02, low=0.02, high=0.02, status=Status.OK
    )
    made = plan(throughput(), critical(5000.0), facts(batch_size=8), curve)
    assert made.learning_rate == pytest.approx(0.05)
    assert any("capped at half the edge" in reason for reason in made.reasons)


def test_a_plan_is_pure() -> None:
    inputs = (throughput(spread=0.1), critical(160.0, low=50.0, high=500.0), facts())
    assert plan(*inputs) == plan(*inputs)


def test_whole_results_can_be_planned_from() -> None:
    results = Results(
        task=facts(), environment={}, throughput=throughput(), critical_batch_size=critical()
    )
    assert plan(results) == plan(throughput(), critical(), facts())


def test_a_price_is_turned_into_the_cost_of_examples() -> None:
    made = plan(throughput(), critical(160.0), objective="cost", price_per_hour=3.6)
    seconds = (0.01 + 0.032) / 32 * 1e6
    assert any(f"a million examples cost {seconds * 0.001:.3g}" in r for r in made.reasons)
    assert made.objective == "cost"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": 0}, "`devices` must be at least 1, got 0"),
        ({"objective": "joy"}, "'time', 'cost' or 'energy', got 'joy'"),
        ({"objective": "energy"}, "needs measured joules"),
        ({"price_per_hour": -1.0}, "`price_per_hour` must be positive and finite, got -1.0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(throughput(), critical(), **options)  # type: ignore[arg-type]


def test_missing_inputs_are_named() -> None:
    with pytest.raises(ValueError, match="got no ThroughputProfile"):
        plan(critical())
    with pytest.raises(ValueError, match="got no NoiseScale, NoiseTrack or CriticalBatchSize"):
        plan(throughput())


def noise(value: float | None, low: float, high: float | None) -> NoiseScale:
    return NoiseScale(
        noise_scale=value,
        low=low,
        high=high,
        grad_sq=1.0,
        trace_cov=1.0,
        examples_used=1,
        geometry="euclidean",
        loss=1.0,
        micro_batch_size=1,
        status=Status.OK if high else Status.AT_LEAST,
    )


def test_the_models_own_error_is_in_the_interval() -> None:
    found = critical_batch_size(noise(100.0, 100.0, 100.0))
    assert found is not None
    assert found.low == pytest.approx(100 * math.exp(-1.96 * MODEL_LOG_SD))
    assert found.high == pytest.approx(100 * math.exp(1.96 * MODEL_LOG_SD))


def test_an_open_end_stays_open() -> None:
    found = critical_batch_size(noise(100.0, 50.0, None))
    assert found is not None
    assert found.high is None
    assert found.low < 50.0
    assert found.status is Status.AT_LEAST


def test_the_average_over_a_run_comes_before_a_single_point() -> None:
    track = NoiseTrack(
        points=(),
        batch_size=8,
        learning_rate=0.1,
        run_average=300.0,
        low=200.0,
        high=450.0,
        trend=None,
        status=Status.OK,
    )
    found = critical_batch_size(noise(100.0, 90.0, 110.0), track)
    assert found is not None
    assert found.value == 300.0


def test_plans_are_dominated_by_nothing_listed() -> None:
    made: Plan = plan(throughput(), critical(700.0, low=100.0, high=4900.0), memory(256))
    fitting = [c for c in made.candidates if c.fits]
    assert min(c.relative_time for c in fitting) == pytest.approx(1.0)
    chosen = next(c for c in fitting if c.batch_size == made.batch_size)
    assert chosen.relative_time <= 1.3


@pytest.mark.parametrize("status", [Status.OUT_OF_TIME, Status.LEAK])
def test_a_memory_search_that_ended_early_does_not_cap_what_was_timed(status: Status) -> None:
    unfinished = MemoryProfile(
        max_verified_batch_size=8,
        upper_bound=None,
        budget_bytes=10,
        points=(),
        status=status,
    )
    made = plan(throughput(), critical(5000.0), unfinished)
    assert made.micro_batch_size > 8


def test_a_size_that_a_busy_machine_slowed_is_no_slower_than_a_larger_one() -> None:
    clean = throughput()
    busy = replace(
        clean,
        points=tuple(
            replace(p, total_seconds=0.6) if p.batch_size == 8 else p for p in clean.points
        ),
    )
    made = plan(busy, critical(160.0))
    at_8 = next(c for c in made.candidates if c.batch_size == 8)
    assert at_8.step_seconds == pytest.approx(0.026)  # what 16 took
    assert made.batch_size == plan(clean, critical(160.0)).batch_size


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_unresolved_noise_still_gives_a_plan_and_says_so(optimizer: str) -> None:
    made = plan(throughput(), facts(optimizer=optimizer), noise(None, 0.0, None))
    assert made.status is Status.UNRESOLVED
    assert made.learning_rate is not None
    assert made.high is None
    assert "could not be resolved" in made.reasons[0]


def test_a_value_without_an_upper_end_is_the_centre_of_the_draws() -> None:
    known = plan(throughput(), critical(5000.0, low=500.0, high=None))
    unknown = plan(throughput(), critical(None, low=5.0, high=None))
    assert known.batch_size > unknown.batch_size


def test_no_noise_needs_no_batch() -> None:
    made = plan(throughput(), critical(0.0, low=0.0, high=2.0))
    smallest = made.candidates[0]
    assert smallest.relative_steps < 3.1
    assert made.batch_size <= 4


def test_a_diverged_run_is_said() -> None:
    track = NoiseTrack(
        points=(),
        batch_size=8,
        learning_rate=0.1,
        run_average=None,
        low=3.0,
        high=None,
        trend=None,
        status=Status.DIVERGED,
    )
    made = plan(throughput(), track)
    assert made.status is Status.DIVERGED
    assert "diverged" in made.reasons[0]


def test_a_sweep_comes_before_the_noise() -> None:
    sweep = CriticalBatchSize(value=2.0, low=2.0, high=2.0, source="sweep", status=Status.OK)
    alone = plan(throughput(), sweep)
    assert plan(throughput(), noise(5000.0, 4000.0, 6000.0), sweep) == alone


def test_more_devices_than_examples_is_said() -> None:
    with pytest.raises(ValueError, match="got 100 examples for 300 devices"):
        plan(throughput(), critical(), facts(examples=100), devices=300)


def test_devices_that_cannot_share_todays_batch_are_said() -> None:
    made = plan(throughput(), critical(), facts(batch_size=64), devices=3)
    assert made.current is None
    assert any("Today's 64 cannot be made up" in reason for reason in made.reasons)


def test_an_empty_profile_is_refused() -> None:
    with pytest.raises(ValueError, match="no ThroughputProfile with points"):
        plan(replace(throughput(), points=()), critical())


def test_a_rate_below_the_winner_is_not_called_the_winner() -> None:
    entry = RaceEntry(learning_rate=0.3, steps=9, loss=1.0, low=1.0, high=1.0)
    race = LRRace(
        batch_size=32,
        entries=(entry,),
        suggestion=0.15,
        low=0.1,
        high=0.3,
        status=Status.OUT_OF_TIME,
    )
    made = plan(throughput(), critical(160.0), facts(), race)
    assert made.learning_rate == 0.15
    assert any("below the winner of a race" in reason for reason in made.reasons)


def test_the_ratio_of_the_sweeps_depends_on_the_optimizer() -> None:
    measured = noise(100.0, 80.0, 130.0)
    plain = critical_batch_size(measured)
    assert plain is not None
    for optimizer, ratio in (
        ("SGD", SWEEP_OVER_NOISE["sgd"]),
        ("AdamW", SWEEP_OVER_NOISE["adaptive"]),
    ):
        found = critical_batch_size(measured, optimizer=optimizer)
        assert found is not None
        assert found.value == pytest.approx(100 * ratio)
        assert found.low == pytest.approx(plain.low * ratio)
        assert found.high == pytest.approx(plain.high * ratio)  # type: ignore[operator]


def test_a_plan_uses_the_ratio_of_its_optimizer() -> None:
    measured = noise(100.0, 80.0, 130.0)
    sgd = plan(throughput(), measured, facts(optimizer="SGD"))
    adam = plan(throughput(), measured, facts(optimizer="Adam"))
    at_8 = [
        next(c.relative_steps for c in made.candidates if c.batch_size == 8) for made in (sgd, adam)
    ]
    assert at_8[1] > 2 * at_8[0]
