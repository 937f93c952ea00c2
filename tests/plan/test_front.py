"""Oracle: brute force over every candidate (rung 2)."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rightbatch import _codec
from rightbatch.plan import plan
from rightbatch.plan.front import _coordinates, not_dominated
from rightbatch.plan.front_reasons import explain_front
from rightbatch.plan.options import PlanOptions
from rightbatch.results import Plan, Results
from tests.plan.made_up import critical, facts, memory, throughput

COUNTS = (1, 2, 4, 8)
LINK: dict[str, Any] = {"allreduce_gbps": 100.0}


def made(value: float = 300.0, **options: Any) -> Plan:
    values: dict[str, Any] = {"devices": COUNTS, **LINK, **options}
    return plan(throughput(), critical(value), facts(parameters=10**7), **values)


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12).map(
        lambda points: [(float(a), float(b)) for a, b in points]
    )
)
def test_what_is_kept_beats_everything_that_is_not(points: list[tuple[float, float]]) -> None:
    kept = [points[i] for i in not_dominated(points)]
    assert len(set(kept)) == len(kept)
    for a in points:
        assert any(k[0] <= a[0] and k[1] <= a[1] for k in kept)
    for k in kept:
        assert not any(a != k and a[0] <= k[0] and a[1] <= k[1] for a in points)


@settings(max_examples=25, deadline=None)
@given(
    value=st.sampled_from([5.0, 40.0, 300.0, 5000.0]),
    alpha=st.sampled_from([0.001, 0.01, 0.1]),
    gbps=st.sampled_from([1.0, 10.0, 1000.0]),
)
def test_no_candidate_beats_a_point_of_the_front_by_more_than_a_tie(
    value: float, alpha: float, gbps: float
) -> None:
    result = plan(
        throughput(alpha=alpha),
        critical(value),
        memory(256),
        facts(parameters=10**7),
        devices=COUNTS,
        allreduce_gbps=gbps,
    )
    fitting = [c for c in result.candidates if c.fits]
    assert min(c.relative_time for c in fitting) == pytest.approx(1.0)
    assert min(c.relative_cost for c in fitting) == pytest.approx(1.0)
    for point in result.front:
        assert not any(
            1.06 * c.relative_time < point.relative_time
            and 1.06 * c.relative_cost < point.relative_cost
            for c in fitting
        )
        for other in result.front:
            faster = other.relative_time < point.relative_time
            cheaper = other.relative_cost < point.relative_cost
            assert other == point or faster != cheaper
    assert (result.devices, result.batch_size) in {(p.devices, p.batch_size) for p in result.front}


def test_cost_is_time_times_devices() -> None:
    result = made()
    ratios = {
        round(c.relative_cost / (c.relative_time * (c.devices or 0)), 9) for c in result.candidates
    }
    assert len(ratios) == 1


def test_each_objective_takes_its_end_of_the_front() -> None:
    time, cost = made(objective="time"), made(objective="cost")
    assert time.front == cost.front
    (fast,) = (p for p in time.front if "time" in p.taken_for)
    (cheap,) = (p for p in time.front if "cost" in p.taken_for)
    assert (time.devices, time.batch_size) == (fast.devices, fast.batch_size)
    assert (cost.devices, cost.batch_size) == (cheap.devices, cheap.batch_size)
    assert fast.relative_time <= 1.05 * min(p.relative_time for p in time.front)
    assert cheap.relative_cost <= 1.05 * min(p.relative_cost for p in time.front)
    assert (cheap.devices, fast.devices) == (1, 8)
    assert any("(the objective asked for)" in r and r.startswith("For time") for r in time.reasons)
    assert any("(the objective asked for)" in r and r.startswith("For cost") for r in cost.reasons)


def test_of_equal_times_the_cheaper_is_taken_and_said() -> None:
    """A tiny critical batch size: a device more saves nothing, and costs as much again."""
    result = made(2.0)
    assert result.devices == 1
    assert [p.devices for p in result.front if "time" in p.taken_for] == [1]


def test_the_reason_for_a_near_tie_is_that_of_its_objective() -> None:
    """Two per cent slower at half the cost; and 2 % dearer on one device instead of two."""
    plain = made().front[0]
    slow = replace(plain, devices=1, relative_time=1.02, relative_cost=1.0, taken_for=("time",))
    fast = replace(plain, devices=2, relative_time=1.0, relative_cost=2.0, taken_for=("cost",))
    words, _ = explain_front((slow, fast), (), options("time"))
    assert "1 device" in words
    assert "within 5 % of the least time (2 devices" in words
    assert "and costs less" in words
    dear = replace(slow, relative_cost=1.02, taken_for=("cost",))
    cheap = replace(fast, relative_cost=1.0, taken_for=("time",))
    _, words = explain_front((dear, cheap), (), options("cost"))
    assert "within 5 % of the least cost (2 devices" in words
    assert "and uses fewer devices" in words


def options(objective: str) -> PlanOptions:
    return PlanOptions(
        objective=objective,
        devices=(1, 2),
        price_per_hour=None,
        allreduce_gbps=None,
        deadline_seconds=None,
        max_cost=None,
        steps_today=None,
        upfront_costs={},
    )


@pytest.mark.parametrize(
    ("objective", "joules", "judged_by"),
    [
        ("time", 3.0, (1.5, 2.5)),
        ("energy", 3.0, (1.5, 2.5, 3.0)),
        ("energy", None, (1.5, 2.5)),
    ],
)
def test_joules_keep_a_way_on_the_front_where_they_are_the_objective(
    objective: str, joules: float | None, judged_by: tuple[float, ...]
) -> None:
    way = replace(
        made().candidates[0], relative_time=1.5, relative_cost=2.5, relative_energy=joules
    )
    assert _coordinates(way, options(objective)) == judged_by


def test_counts_that_others_beat_are_named() -> None:
    slow = made(5.0, allreduce_gbps=1.0)
    assert [p.devices for p in slow.front] == [1]
    assert any(r.startswith("Not on the front: 2, 4 and 8 devices") for r in slow.reasons)


def test_one_count_makes_one_point_and_no_words_about_a_front() -> None:
    result = plan(throughput(), critical(300.0), facts())
    assert len(result.front) == 1
    assert result.front[0].taken_for == ("time", "cost")
    assert not any("front" in r for r in result.reasons)


def test_the_order_and_repeats_of_counts_do_not_matter() -> None:
    assert made(devices=[8, 1, 4, 2, 2]) == made()


def test_the_choice_on_one_count_is_that_of_a_plan_for_it_alone() -> None:
    points = {p.devices: p.batch_size for p in made().front}
    for devices, batch_size in points.items():
        assert made(devices=devices).batch_size == batch_size


def test_the_range_and_the_rate_are_those_of_the_chosen_count_alone() -> None:
    inputs = (throughput(spread=0.1), critical(300.0, low=60.0, high=1500.0), facts())
    several = plan(*inputs, devices=COUNTS, objective="cost")
    alone = plan(*inputs, devices=several.devices)
    assert several.devices == 1  # and more would be faster
    assert (several.low, several.high) == (alone.low, alone.high)
    assert several.low < several.high  # type: ignore[operator]
    assert several.learning_rate == alone.learning_rate


def test_counts_that_cannot_share_a_batch_are_left_out_with_a_warning() -> None:
    few = facts(examples=100, parameters=10)
    result = plan(throughput(), critical(300.0), few, devices=[1, 300], **LINK)
    assert result.devices == 1
    assert result.warnings == (
        "300 devices cannot share a batch of sizes that were timed and fit: left out.",
    )


def test_today_is_on_the_fewest_devices() -> None:
    result = made()
    assert result.current is not None
    assert result.current.devices == 1
    today = next(c for c in result.candidates if c.batch_size == 16 and c.devices == 1)
    chosen = next(
        c
        for c in result.candidates
        if (c.batch_size, c.devices) == (result.batch_size, result.devices)
    )
    assert result.speedup == pytest.approx(today.relative_time / chosen.relative_time, rel=1e-9)
    assert any("Against today's 16 on 1 device" in r for r in result.reasons)


@pytest.mark.parametrize(
    "devices", [np.array([1, 2]), range(1, 3), {2, 1}, [np.int64(1), 2.0]], ids=repr
)
def test_counts_come_in_any_collection(devices: Any) -> None:
    assert made(devices=devices) == made(devices=[1, 2])


@pytest.mark.parametrize("devices", [np.int64(2), 2.0], ids=repr)
def test_one_count_may_be_a_number_of_numpy(devices: Any) -> None:
    assert made(devices=devices) == made(devices=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": []}, "must name at least one count, got none"),
        ({"devices": [1, 0]}, "`devices` must be at least 1, got 0"),
        ({"devices": np.array([1, 0])}, "`devices` must be at least 1, got 0"),
        ({"devices": "12"}, "`devices` must be a whole number or several, got '12'"),
        ({"devices": ["1"]}, r"must be a whole number or several, got \['1'\]"),
        ({"devices": 1.5}, r"`devices` must be a whole number or several, got 1\.5"),
        ({"devices": [float("nan")]}, r"must be a whole number or several, got \[nan\]"),
        ({"devices": None}, "`devices` must be a whole number or several, got None"),
        ({"devices": np.array([[1]])}, r"or several, got array\(\[\[1\]\]\)"),
        ({"devices": [True]}, "`devices` must be at least 1, got True"),
        ({"allreduce_gbps": 0.0}, "`allreduce_gbps` must be positive and finite, got 0.0"),
    ],
)
def test_wrong_counts_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**options)


def test_a_plan_with_everything_comes_back_from_its_file() -> None:
    result = made(
        price_per_hour=2.5,
        deadline_seconds=3600.0,
        max_cost=40.0,
        steps_today=10_000,
        upfront_costs={"per_device": 10.0},
    )
    whole = Results(task=facts(), environment={}, plan=result)
    assert _codec.from_json(_codec.to_json(whole), Results) == whole


def test_files_from_before_the_front_are_read() -> None:
    plain = _codec.to_json(Results(task=facts(), environment={}, plan=made()))
    for key in ("front", "costs", "warnings"):
        del plain["plan"][key]
    for candidate in plain["plan"]["candidates"]:
        for key in ("devices", "communication_seconds", "assumed"):
            del candidate[key]
    read = _codec.from_json(plain, Results).plan
    assert read is not None
    assert (read.front, read.costs, read.warnings) == ((), (), ())
