"""Front and costs on both faces. Oracle: the plan's own numbers, and a page that is well formed."""

import json
import math
from dataclasses import replace

import pytest

from rightbatch._format import format_count
from rightbatch.plan import plan
from rightbatch.report import figures, render_html, render_text
from rightbatch.report.figures import FIGURES
from rightbatch.report.front_tables import plan_tables
from rightbatch.report.tables import candidates_table, current_candidate
from tests.report import samples

OPTIONS = {
    "devices": [1, 2, 4, 8],
    "allreduce_gbps": 10.0,
    "price_per_hour": 2.5,
}
MADE = plan(samples.FULL, **OPTIONS)
LIMITED = plan(samples.FULL, **OPTIONS, deadline_seconds=3600.0)
JUDGED = plan(
    samples.FULL,
    **OPTIONS,
    objective="cost",
    deadline_seconds=1700.0,
    steps_today=400_000,
    upfront_costs={"per_device": 3.0},
)
ALL = pytest.mark.parametrize("made", [MADE, LIMITED, JUDGED], ids=["plain", "limited", "judged"])


def _front(made):
    return plan_tables(made)[0]


@ALL
def test_a_row_for_each_point_and_the_choice_marked(made):
    table = _front(made)
    assert len(table.rows) == len(made.front) >= 3
    assert {len(row.cells) for row in table.rows} == {len(table.header)}
    (chosen,) = (row for row in table.rows if row.mark == "choice")
    assert chosen.cells[:2] == (format_count(made.devices), format_count(made.batch_size))
    assert "recommended" in chosen.cells[-1]


def test_what_is_known_decides_the_columns():
    assert _front(MADE).header == ("devices", "batch size", "time", "cost", "")
    assert _front(LIMITED).header[4:] == ("steps allowed", "surely", "")
    assert _front(JUDGED).header[4:] == ("run takes", "at most", "run costs", "at most", "")
    assert "at today's batch size 64" in _front(LIMITED).note


def test_points_over_the_limits_say_so():
    remarks = {row.cells[0]: row.cells[-1] for row in _front(JUDGED).rows}
    over = [str(p.devices) for p in JUDGED.front if p.meets_limits is False]
    assert over
    assert [d for d, remark in remarks.items() if "over the limits" in remark] == over


def test_one_point_that_says_nothing_more_has_no_table():
    assert plan_tables(plan(samples.FULL)) == ()
    assert len(plan_tables(plan(samples.FULL, deadline_seconds=60.0))) == 1


def test_costs_have_a_row_for_each_option():
    table = plan_tables(JUDGED)[1]
    assert [row.cells[0] for row in table.rows] == [option.name for option in JUDGED.costs]
    assert {len(row.cells) for row in table.rows} == {len(table.header)}
    assert table.rows[0].mark == "current"
    unknown = plan(samples.FULL, **OPTIONS, upfront_costs={"retuning": 1.0})
    (_, short) = plan_tables(unknown)
    assert "one run" not in short.header
    assert {len(row.cells) for row in short.rows} == {len(short.header)}


def test_candidates_are_those_on_as_many_devices_as_recommended():
    table = candidates_table(MADE)
    assert MADE.devices == 8
    assert all(row.cells[1].endswith(" x 8") for row in table.rows)
    today = current_candidate(MADE)
    assert today is not None
    assert (today.batch_size, today.devices) == (64, 1)


@ALL
def test_the_text_shows_front_and_warnings_and_cuts_nothing_off(made):
    text = render_text(replace(samples.FULL, plan=made))
    assert "Front: no other way is both faster and cheaper" in text
    assert "batch size 64 on 1 device, to the same loss" in " ".join(text.split())
    assert "\u2026" not in text
    free = plan(samples.FULL, devices=[1, 2])
    warned = render_text(replace(samples.FULL, plan=free))
    assert "Communication counted as free" in " ".join(warned.split("Warnings")[1].split())


@ALL
def test_the_page_shows_the_front(made):
    page = render_html(replace(samples.FULL, plan=made))
    assert 'data-figure="front"' in page
    assert "Front: no other way is both faster and cheaper" in page
    assert ("What is paid once" in page) == bool(made.costs)
    free = render_html(replace(samples.FULL, plan=plan(samples.FULL, devices=[1, 2])))
    assert "Communication counted as free" in free


@ALL
def test_the_figure_draws_a_mark_for_each_point(made):
    plain = FIGURES["front"](replace(samples.FULL, plan=made)).to_plotly_json()
    traces = {trace["name"]: trace for trace in plain["data"]}
    assert traces["front"]["x"] == [p.relative_time for p in made.front]
    assert traces["front"]["y"] == [p.relative_cost for p in made.front]
    (chosen,) = (p for p in made.front if p.devices == made.devices)
    assert (traces["recommended"]["x"], traces["recommended"]["y"]) == (
        [chosen.relative_time],
        [chosen.relative_cost],
    )
    labels = {note["text"] for note in plain["layout"]["annotations"]}
    assert labels == {f"{p.devices} x" for p in made.front}
    assert json.dumps(plain, allow_nan=False)
    for trace in plain["data"]:
        for axis, values in (("xaxis", trace["x"]), ("yaxis", trace["y"])):
            low, high = plain["layout"][axis]["range"]
            assert all(low <= math.log10(value) <= high for value in values)


def test_one_point_makes_no_figure_of_a_front():
    assert "front" not in figures(replace(samples.FULL, plan=plan(samples.FULL)))
    assert FIGURES["plan"](replace(samples.FULL, plan=MADE)) is not None
