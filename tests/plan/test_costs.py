"""Oracle: the break-even by hand (rung 1)."""

from typing import Any

import pytest

from rightbatch.plan import plan
from rightbatch.results import CostOption, Plan
from tests.plan.made_up import critical, facts, throughput

B_C, TODAY, PRICE = 300.0, 4, 3.6  # a price of a thousandth per second


def made(upfront: dict[str, float] | None, **options: Any) -> Plan:
    values: dict[str, Any] = {
        "devices": [1, 4],
        "allreduce_gbps": 1e6,
        "price_per_hour": PRICE,
        "upfront_costs": upfront,
        **options,
    }
    return plan(throughput(), critical(B_C), facts(batch_size=TODAY), **values)


def per_step(option: CostOption) -> float:
    """Cost of what becomes of one step of today's run; batches here need no accumulation."""
    steps = (1 + B_C / option.batch_size) / (1 + B_C / TODAY)
    seconds = 0.01 + 0.001 * option.batch_size / option.devices
    return steps * seconds * option.devices * 1e-3


def test_break_even_by_hand() -> None:
    result = made({"per_device": 100.0, "retuning": 5.0}, steps_today=20_000)
    stay, other, more = result.costs
    assert [o.name for o in result.costs] == ["stay", "other batch here", "more devices"]
    assert (stay.upfront, other.upfront, more.upfront) == (0.0, 5.0, 305.0)
    assert (stay.batch_size, stay.devices, more.devices) == (TODAY, 1, 4)
    for option in result.costs:
        assert option.running == pytest.approx(20_000 * per_step(option), rel=1e-4)
        assert option.total == pytest.approx(option.upfront + (option.running or 0), rel=1e-12)
    for option in (other, more):
        saving = per_step(stay) - per_step(option)
        assert saving > 0  # today's batch is far too small: everything is cheaper to run
        assert option.break_even_steps == pytest.approx(option.upfront / saving, rel=1e-3)
        assert option.break_even_runs == pytest.approx(option.upfront / saving / 20_000, rel=1e-3)
    assert (stay.break_even_steps, stay.relative_time) == (None, 1.0)
    assert more.relative_time < other.relative_time < 1


def test_what_is_dearer_to_run_never_pays() -> None:
    """Today's batch is the best here: four devices are faster, and cost more in every run."""
    result = plan(
        throughput(),
        critical(B_C),
        facts(batch_size=32),
        devices=[1, 4],
        price_per_hour=PRICE,
        upfront_costs={"per_device": 100.0},
    )
    assert [o.name for o in result.costs] == ["stay", "more devices"]
    assert result.costs[1].break_even_steps is None
    assert any("never pays in money, but takes" in r for r in result.reasons)


def test_retuning_is_paid_only_where_the_batch_size_changes() -> None:
    upfront = {"per_device": 100.0, "retuning": 5.0}
    size = made(upfront).costs[2].batch_size
    result = plan(
        throughput(),
        critical(B_C),
        facts(batch_size=size),
        devices=[1, 4],
        allreduce_gbps=1e6,
        price_per_hour=PRICE,
        upfront_costs=upfront,
    )
    (more,) = (option for option in result.costs if option.name == "more devices")
    assert (more.batch_size, more.upfront) == (size, 300.0)


def test_without_the_steps_of_a_run_the_break_even_is_in_steps() -> None:
    known = made({"per_device": 100.0}, steps_today=20_000).costs[2]
    unknown = made({"per_device": 100.0}).costs[2]
    assert (unknown.running, unknown.total, unknown.break_even_runs) == (None, None, None)
    assert unknown.break_even_steps == known.break_even_steps
    assert any("of today's steps" in r for r in made({"per_device": 100.0}).reasons)


def test_nothing_is_compared_where_no_upfront_cost_is_named() -> None:
    assert made(None).costs == ()
    assert made({}).costs == ()


def test_todays_batch_must_be_known() -> None:
    result = plan(
        throughput(),
        critical(B_C),
        facts(batch_size=None),
        price_per_hour=PRICE,
        upfront_costs={"retuning": 1.0},
    )
    assert result.costs == ()
    assert any("Upfront costs cannot be weighed" in r for r in result.reasons)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"upfront": {"cables": 3.0}}, "knows 'per_device' and 'retuning', got 'cables'"),
        ({"upfront": {"per_device": -3.0}}, "must not be negative, got per_device=-3.0"),
        ({"upfront": {"per_device": 3.0}, "price_per_hour": None}, "got no `price_per_hour`"),
    ],
)
def test_wrong_costs_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**options)
