"""What the words beside the front claim. Oracle: the numbers in the same table."""

import pytest

from rightbatch.plan import plan
from rightbatch.report.front_tables import plan_tables
from rightbatch.report.plan_figures import front_figure
from rightbatch.results import Plan, Results
from tests.plan.made_up import critical, facts, throughput
from tests.plan.test_energy import energy

# Threefold doubt in B_c: on average one device with 256 is within 5 % of the least time, and at
# the middle of the interval it is not.
DOUBTFUL = plan(
    throughput(0.1, 0.001),
    critical(1000.0, 1000.0 / 3, 3000.0),
    facts(parameters=10**7),
    devices=[1, 2, 4],
    allreduce_gbps=1.0,
)
THRIFTY = plan(
    throughput(alpha=1.0, beta=1e-5),
    critical(160.0),
    facts(),
    energy(1.0),
    objective="energy",
    devices=[1, 4],
)


def test_what_is_near_on_average_is_not_called_near_without_saying_so() -> None:
    (taken,) = (p for p in DOUBTFUL.front if "time" in p.taken_for)
    assert taken.relative_time > 1.05 * min(p.relative_time for p in DOUBTFUL.front)
    (words,) = (r for r in DOUBTFUL.reasons if r.startswith("For time"))
    assert "on average within 5 % of the least time (4 devices" in words
    assert "given the intervals, and costs less" in words
    (size,) = (r for r in DOUBTFUL.reasons if "the fewest possible steps" in r)
    assert "or on average within 5 % of it, given the intervals." in size


def test_energy_that_is_near_on_average_says_so_too() -> None:
    (words,) = (r for r in THRIFTY.reasons if r.startswith("For energy"))
    assert "or on average within 5 % of it, given the intervals" in words


@pytest.mark.parametrize("made", [DOUBTFUL, THRIFTY], ids=["time", "energy"])
def test_the_remark_names_the_objective_and_claims_no_least(made: Plan) -> None:
    table = plan_tables(made)[0]
    assert table.note is not None
    assert "the least on average or within 5 % of it" in table.note
    for row, point in zip(table.rows, made.front, strict=True):
        remarks = row.cells[-1].split(", ")
        assert [r for r in remarks if r.startswith("for ")] == [f"for {o}" for o in point.taken_for]
        assert "least" not in row.cells[-1]


def test_the_title_says_what_the_front_is_judged_by() -> None:
    assert plan_tables(DOUBTFUL)[0].title == "Front: no other way is both faster and cheaper"
    assert plan_tables(THRIFTY)[0].title == ("Front: no other way is faster, cheaper and thriftier")


@pytest.mark.parametrize(
    ("made", "mode"), [(DOUBTFUL, "lines+markers"), (THRIFTY, "markers")], ids=["time", "energy"]
)
def test_points_that_joules_keep_are_not_joined_by_a_line(made: Plan, mode: str) -> None:
    figure = front_figure(Results(task=facts(), environment={}, plan=made))
    assert figure is not None
    (trace,) = (t for t in figure.to_plotly_json()["data"] if t["name"] == "front")
    assert trace["mode"] == mode
