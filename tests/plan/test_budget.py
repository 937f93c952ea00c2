"""What a budget says of its doubt. Oracle: cost is seconds times devices times price (rung 1)."""

from typing import Any

import pytest

from rightbatch.plan import plan
from rightbatch.report.front_tables import plan_tables
from rightbatch.results import Plan
from tests.plan.made_up import critical, facts, throughput

PRICE = 3.0


def made(**options: Any) -> Plan:
    values: dict[str, Any] = {"price_per_hour": PRICE, "steps_today": 100_000, **options}
    noise = critical(300.0, 30.0, 3000.0)
    return plan(throughput(), noise, facts(batch_size=16, parameters=10**6), **values)


def the_reason(result: Plan) -> str:
    (reason,) = (r for r in result.reasons if r.startswith(("With a", "No point", "A budget")))
    return reason


def test_the_cost_has_the_interval_of_the_seconds() -> None:
    for point in made(devices=[1, 4], allreduce_gbps=100.0).front:
        costs = (point.cost_low, point.cost, point.cost_high)
        seconds = (point.seconds_low, point.seconds, point.seconds_high)
        assert costs == pytest.approx([(s or 0) * point.devices * PRICE / 3600 for s in seconds])
        assert costs[0] < costs[1] < costs[2]  # type: ignore[operator]


def test_without_a_price_or_steps_there_is_no_cost() -> None:
    for options in ({"price_per_hour": None}, {"steps_today": None}):
        (point,) = made(**options).front
        assert (point.cost_low, point.cost, point.cost_high) == (None, None, None)


@pytest.mark.parametrize("way", [0.01, 1.5], ids=["within the doubt", "beyond the doubt"])
@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (("max_cost",), "cost more"),
        (("deadline_seconds",), "be late"),
        (("deadline_seconds", "max_cost"), "be late or cost more"),
    ],
    ids=["cost", "time", "both"],
)
def test_a_limit_that_the_upper_end_breaks_is_said_to_be_in_doubt(
    limits: tuple[str, ...], words: str, way: float
) -> None:
    """Limits so far on the way from the middle of the interval to its upper end."""
    (free,) = made().front
    ends = {
        "max_cost": (free.cost, free.cost_high),
        "deadline_seconds": (free.seconds, free.seconds_high),
    }
    given = {n: m + way * (h - m) for n, (m, h) in ends.items() if n in limits}  # type: ignore
    reason = the_reason(made(**given))
    said = f"It may still {words}, as the interval says."
    assert reason.endswith(said) == (way < 1)
    assert ("It may still" in reason) == (way < 1)
    assert f"({free.cost_low:.3g} to {free.cost_high:.3g}) to pay" in reason


@pytest.mark.parametrize("steps", [100_000, None])
def test_a_budget_is_said_to_be_without_what_is_paid_once(steps: int | None) -> None:
    options: dict[str, Any] = {"max_cost": 5.0, "steps_today": steps}
    paid = the_reason(made(**options, upfront_costs={"per_device": 100.0}))
    assert "budget of 5 for each run (what is paid once is not in it)" in paid
    assert "paid once" not in the_reason(made(**options))


def test_the_table_shows_the_upper_end_of_the_cost_and_what_it_leaves_out() -> None:
    result = made(devices=[1, 4], allreduce_gbps=100.0, upfront_costs={"per_device": 100.0})
    table, _ = plan_tables(result)
    column = table.header.index("run costs")
    assert table.header[column + 1] == "at most"
    for row, point in zip(table.rows, result.front, strict=True):
        shown = [float(cell.replace(",", "")) for cell in row.cells[column : column + 2]]
        assert shown == pytest.approx([point.cost, point.cost_high], rel=0.005)
    assert table.note is not None
    assert "run costs: each run, without what is paid once" in table.note
