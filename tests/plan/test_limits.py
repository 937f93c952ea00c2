"""Oracle: the closed form of a run's length, steps x seconds (rung 1)."""

from typing import Any

import pytest

from rightbatch._format import format_ratio
from rightbatch.plan import plan
from rightbatch.results import Candidate, FrontPoint, Plan
from tests.plan.made_up import critical, facts, throughput

STEPS, TODAY, B_C = 10_000, 16, 300.0


def made(*, doubt: bool = False, **options: Any) -> Plan:
    values: dict[str, Any] = {"devices": [1, 2, 4], "allreduce_gbps": 100.0, **options}
    noise = critical(B_C, low=30.0, high=3000.0) if doubt else critical(B_C)
    return plan(throughput(), noise, facts(batch_size=TODAY, parameters=10**6), **values)


def seconds_of(point: FrontPoint, steps: float = STEPS) -> float:
    """Steps at today's batch size, carried over by 1 + B_c / b, times a step's seconds."""
    needed = steps * (1 + B_C / point.batch_size) / (1 + B_C / TODAY)
    one_pass = 0.01 + 0.001 * point.micro_batch_size
    adding_up = 2 * (point.devices - 1) / point.devices * 32e6 / 100e9
    return needed * (point.accumulation_steps * one_pass + adding_up)


def test_seconds_and_cost_of_the_run_by_hand() -> None:
    result = made(steps_today=STEPS, price_per_hour=3.0)
    assert len(result.front) == 3
    for point in result.front:
        seconds = seconds_of(point)
        assert point.seconds == pytest.approx(seconds, rel=1e-9)
        assert (point.seconds_low, point.seconds_high) == pytest.approx((seconds, seconds))
        assert point.cost == pytest.approx(seconds * point.devices * 3.0 / 3600, rel=1e-9)
        assert point.meets_limits is None


def test_doubt_in_the_noise_is_doubt_in_the_seconds() -> None:
    for point in made(doubt=True, steps_today=STEPS).front:
        assert point.batch_size > TODAY
        assert point.seconds_low < point.seconds < point.seconds_high  # type: ignore[operator]


def test_without_steps_there_are_no_seconds() -> None:
    for point in made(price_per_hour=3.0).front:
        assert (point.seconds, point.cost, point.meets_limits) == (None, None, None)
        assert point.steps_allowed is None


def test_a_deadline_without_steps_says_which_run_keeps_it() -> None:
    result = made(deadline_seconds=3600.0)
    for point in result.front:
        assert point.steps_allowed is not None
        assert seconds_of(point, point.steps_allowed) == pytest.approx(3600.0, rel=1e-9)
    (reason,) = (r for r in result.reasons if "deadline of 1 h" in r)
    assert "at today's batch size 16, at most this many steps" in reason
    assert "--steps-today" in reason
    assert result.devices == made().devices


def test_without_todays_batch_the_fewest_possible_steps_are_counted() -> None:
    unknown = facts(batch_size=None, parameters=10**6)
    result = plan(throughput(), critical(B_C), unknown, deadline_seconds=3600.0)
    (point,) = result.front
    fewest = 3600.0 / ((1 + B_C / point.batch_size) * (0.01 + 0.001 * point.batch_size))
    assert point.steps_allowed == pytest.approx(fewest, rel=1e-9)
    assert any("Task(batch_size=...)" in r for r in result.reasons)


def test_a_budget_without_steps_counts_all_devices() -> None:
    for point in made(max_cost=5.0, price_per_hour=2.0).front:
        assert point.steps_allowed is not None
        seconds = seconds_of(point, point.steps_allowed)
        assert seconds * point.devices * 2.0 / 3600 == pytest.approx(5.0, rel=1e-9)


@pytest.mark.parametrize("deadline", [100.0, 1e6])
def test_of_a_deadline_and_a_budget_the_tighter_one_counts(deadline: float) -> None:
    """Five units at two an hour are 2.5 hours on one device, less on more."""
    for point in made(max_cost=5.0, price_per_hour=2.0, deadline_seconds=deadline).front:
        assert point.steps_allowed is not None
        tighter = min(deadline, 2.5 * 3600 / point.devices)
        assert seconds_of(point, point.steps_allowed) == pytest.approx(tighter, rel=1e-9)


def test_a_deadline_takes_more_devices_than_the_least_cost_asks_for() -> None:
    free = made(objective="cost", steps_today=STEPS)
    assert free.devices == 1
    one, two, _ = (p.seconds for p in free.front)
    assert one is not None
    assert two is not None
    hurried = made(objective="cost", steps_today=STEPS, deadline_seconds=(one + two) / 2)
    assert hurried.devices == 2
    assert [p.meets_limits for p in hurried.front] == [False, True, True]
    (reason,) = (r for r in hurried.reasons if r.startswith("With a deadline"))
    cost = hurried.front[1].relative_cost / hurried.front[0].relative_cost
    assert f"takes 1 device with batch size {hurried.front[0].batch_size}" in reason
    assert f"{format_ratio(cost)} its cost" in reason


def test_sizes_as_good_as_the_best_keep_the_deadline_too() -> None:
    """Without one they are within 5 % of the least time; with one of a tenth of that, nearer."""
    free = made(devices=[1], steps_today=STEPS)
    (point,) = free.front
    fastest = min(c.relative_time for c in free.candidates)
    chosen = next(c for c in free.candidates if c.batch_size == free.batch_size)
    assert point.seconds is not None
    least = point.seconds * fastest / chosen.relative_time
    tight = made(devices=[1], steps_today=STEPS, deadline_seconds=1.005 * least)
    keep = [c.batch_size for c in free.candidates if c.relative_time <= 1.005 * fastest]
    near = [c.batch_size for c in free.candidates if c.relative_time <= 1.05 * fastest]
    assert (free.low, free.high) == (min(near), max(near))
    assert (tight.low, tight.high) == (min(keep), max(keep))
    assert len(keep) < len(near)


def test_a_budget_takes_fewer_devices_than_the_least_time_asks_for() -> None:
    free = made(steps_today=STEPS, price_per_hour=1.0)
    assert free.devices == 4
    _, two, four = (p.cost for p in free.front)
    assert two is not None
    assert four is not None
    saving = made(steps_today=STEPS, price_per_hour=1.0, max_cost=(two + four) / 2)
    assert saving.devices == 2
    assert any(r.startswith("With a budget of") for r in saving.reasons)


def test_limits_that_change_nothing_say_so() -> None:
    result = made(steps_today=STEPS, deadline_seconds=1e6)
    assert result.devices == made().devices
    assert any("the objective time takes the same" in r for r in result.reasons)


@pytest.mark.parametrize(
    ("options", "devices"),
    [
        ({"objective": "cost", "deadline_seconds": 1e-3}, 4),
        ({"objective": "time", "max_cost": 1e-6, "price_per_hour": 1.0}, 1),
        ({"max_cost": 1e-6, "deadline_seconds": 1e-3, "price_per_hour": 1.0}, 4),
    ],
)
def test_limits_that_nothing_keeps_take_what_comes_nearest_and_say_so(
    options: dict[str, Any], devices: int
) -> None:
    result = made(steps_today=STEPS, **options)
    assert result.devices == devices
    assert any(r.startswith("No point of the front keeps") for r in result.reasons)


def test_a_deadline_within_the_doubt_is_called_in_doubt() -> None:
    free = made(doubt=True, steps_today=STEPS)
    middle = max(p.seconds for p in free.front if "time" in p.taken_for)  # type: ignore[type-var]
    tight = made(doubt=True, steps_today=STEPS, deadline_seconds=1.01 * middle)  # type: ignore[operator]
    assert any("It may still be late" in r for r in tight.reasons)
    loose = made(doubt=True, steps_today=STEPS, deadline_seconds=100 * middle)  # type: ignore[operator]
    assert not any("It may still be late" in r for r in loose.reasons)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_cost": 4.0}, "`max_cost` needs `price_per_hour`, got max_cost=4 alone"),
        ({"deadline_seconds": 0.0}, "`deadline_seconds` must be positive and finite, got 0.0"),
        ({"deadline_seconds": float("nan")}, "must be positive and finite, got nan"),
        ({"max_cost": -1.0, "price_per_hour": 1.0}, "`max_cost` must be positive"),
        ({"steps_today": float("inf")}, "`steps_today` must be positive and finite, got inf"),
    ],
)
def test_wrong_limits_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**options)


def test_steps_of_an_unknown_batch_size_are_refused() -> None:
    with pytest.raises(ValueError, match="got 100 and no batch size"):
        plan(throughput(), critical(), steps_today=100)


def hurried(**options: Any) -> Plan:
    """B_c = 600, 2 ms + 0.1 ms an example: 64 is within 5 % of the fastest, 128, on a device."""
    steps = throughput(alpha=0.002, beta=0.0001, sizes=(16, 32, 64, 128, 256))
    return plan(steps, critical(600.0), facts(batch_size=64), **options)


def test_a_deadline_that_only_a_faster_size_keeps_takes_that_size() -> None:
    free = hurried(steps_today=STEPS)
    assert free.front[0].seconds is not None
    kept = hurried(steps_today=STEPS, deadline_seconds=0.999 * free.front[0].seconds)
    assert kept.batch_size > free.batch_size
    assert [p.meets_limits for p in kept.front] == [True]
    (reason,) = (r for r in kept.reasons if r.startswith("With a deadline"))
    assert f"without, the objective time takes 1 device with batch size {free.batch_size}" in reason


def test_a_budget_that_only_a_faster_size_keeps_takes_that_size_and_weighs_it() -> None:
    paid: dict[str, Any] = {"steps_today": STEPS, "price_per_hour": 1.0}
    free = hurried(**paid)
    assert free.front[0].cost is not None
    kept = hurried(**paid, max_cost=0.999 * free.front[0].cost, upfront_costs={"retuning": 1.0})
    assert kept.batch_size > free.batch_size
    assert [option.batch_size for option in kept.costs] == [64, kept.batch_size]


def test_a_deadline_that_the_usual_size_keeps_changes_no_size() -> None:
    free = hurried(steps_today=STEPS)
    assert free.front[0].seconds is not None
    kept = hurried(steps_today=STEPS, deadline_seconds=1.001 * free.front[0].seconds)
    assert kept.batch_size == free.batch_size


def test_of_two_limits_that_nothing_keeps_the_one_missed_by_more_says_what_is_nearest() -> None:
    """A thousandth of the least cost and half of the least time: one device is the nearest."""
    free = made(steps_today=STEPS, price_per_hour=1.0)
    least_cost = min(p.cost for p in free.front)  # type: ignore[type-var]
    least_time = min(p.seconds for p in free.front)  # type: ignore[type-var]
    missed = made(
        steps_today=STEPS,
        price_per_hour=1.0,
        max_cost=least_cost / 1000,  # type: ignore[operator]
        deadline_seconds=least_time / 2,  # type: ignore[operator]
    )
    assert (free.devices, missed.devices) == (4, 1)


@pytest.mark.parametrize("factor", [0.9, 0.97, 0.999, 1.0, 1.01, 1.03, 1.05, 1.3, 3.0])
@pytest.mark.parametrize("objective", ["time", "cost"])
def test_a_limit_is_kept_if_any_way_keeps_it(factor: float, objective: str) -> None:
    """Brute force over all candidates."""
    least = min(seconds_of_candidate(c) for c in made().candidates)
    deadline = factor * least * (1 + 1e-9)
    result = made(steps_today=STEPS, deadline_seconds=deadline, objective=objective)
    (chosen,) = (p for p in result.front if p.devices == result.devices)
    assert chosen.meets_limits == (factor >= 1)
    assert chosen.seconds is not None
    assert (chosen.seconds <= deadline) == (factor >= 1)


def seconds_of_candidate(candidate: Candidate) -> float:
    return STEPS * candidate.relative_steps * candidate.step_seconds / (1 + B_C / TODAY)
