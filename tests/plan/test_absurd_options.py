"""Options whose product no number holds are refused by name. Oracle: the largest float, 1.8e308."""

from typing import Any

import pytest

from rightbatch.errors import CannotPlan
from rightbatch.plan import plan
from rightbatch.report import render_text
from rightbatch.results import Plan, Results
from tests.plan.made_up import critical, facts, throughput


def made(slow: float = 1.0, **options: Any) -> Plan:
    seconds = throughput(alpha=0.01 * slow, beta=0.001 * slow)
    return plan(seconds, critical(300.0), facts(parameters=10**6), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"price_per_hour": 1e308, "steps_today": 1e9},
            r"The cost of a run .*finite, got steps_today=1e\+09, price_per_hour=1e\+308, which",
        ),
        (
            {"price_per_hour": 1e-300, "max_cost": 1e10},
            r"steps of a run allowed .*finite, got max_cost=1e\+10, price_per_hour=1e-300, which",
        ),
        (
            {"deadline_seconds": 1.7e308},
            r"steps of a run allowed .*finite, got deadline_seconds=1\.7e\+308, which",
        ),
        (
            {"price_per_hour": 1.0, "upfront_costs": {"per_device": 1e308}, "devices": [1, 4]},
            r"the first run .*finite, got price_per_hour=1, .*'per_device'\]=1e\+308, which",
        ),
        (
            {"price_per_hour": 1.0, "upfront_costs": {"retuning": 1e308}},
            r"steps that earn back .*finite, got price_per_hour=1, .*'retuning'\]=1e\+308, which",
        ),
        (
            {"price_per_hour": 1.7e308, "upfront_costs": {"retuning": 1.0}, "slow": 1e4},
            r"What is saved with each step .*finite, got price_per_hour=1\.7e\+308, ",
        ),
    ],
)
def test_numbers_that_cannot_be_held_are_refused_by_name(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CannotPlan, match=message) as refused:
        made(**options)
    assert "Check the units: seconds, steps, and one currency" in str(refused.value)


def test_so_many_steps_that_no_number_holds_their_seconds_are_refused() -> None:
    with pytest.raises(
        CannotPlan, match=r"The seconds of a run .* got steps_today=1\.7e\+308, which"
    ):
        made(slow=1e4, steps_today=1.7e308)


@pytest.mark.parametrize(
    "options",
    [
        {"deadline_seconds": 1e-300, "steps_today": 1e300},
        {"price_per_hour": 1e200, "steps_today": 1e6, "max_cost": 1e-100},
        {"price_per_hour": 1e-300, "steps_today": 1.0},
        {"price_per_hour": 1e300, "steps_today": 1.0, "max_cost": 1e-300},
    ],
)
def test_what_a_number_can_hold_is_planned_and_printed(options: dict[str, Any]) -> None:
    result = made(**options)
    text = render_text(Results(task=facts(), environment={}, plan=result))
    assert "inf" not in text.replace("information", "")
