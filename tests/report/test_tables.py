"""Tables. Oracle: counts and laws over hand-made plans."""

from dataclasses import replace

import pytest

from rightbatch.report.tables import candidates_table, cost_differs, tables
from rightbatch.report.words import INSTRUMENTS
from rightbatch.results import Current
from tests.report import samples


@pytest.mark.parametrize("limit", [3, 4, 7, 11, 100, None])
def test_what_matters_stays_however_few_rows_there_are(limit):
    table = candidates_table(samples.PLAN, limit=limit)
    marks = [row.mark for row in table.rows]
    assert len(table.rows) == min(limit or 100, len(samples.PLAN.candidates))
    assert marks.count("choice") == 1
    assert marks.count("current") == 1
    assert marks.count("impossible") >= 1
    sizes = [int(row.cells[0].replace(",", "")) for row in table.rows]
    assert sizes == sorted(sizes)


def test_left_out_rows_are_counted():
    assert candidates_table(samples.PLAN, limit=7).note.endswith("7 of 11 shown.")
    assert "shown" not in candidates_table(samples.PLAN).note


@pytest.mark.parametrize("results", samples.ALL.values(), ids=samples.ALL)
def test_every_row_is_as_wide_as_its_header(results):
    made = [table for name in INSTRUMENTS for table in tables(results, name)]
    if results.plan is not None:
        made.append(candidates_table(results.plan))
    for table in made:
        assert table.rows
        assert {len(row.cells) for row in table.rows} == {len(table.header)}


def test_cost_has_a_column_only_where_it_says_more_than_time():
    assert not cost_differs(samples.PLAN)
    assert "cost" not in candidates_table(samples.PLAN).header
    dearer = tuple(
        replace(c, relative_cost=c.relative_time * (1 + i))
        for i, c in enumerate(samples.PLAN.candidates)
    )
    table = candidates_table(replace(samples.PLAN, candidates=dearer))
    assert table.header[-2] == "cost"
    assert table.rows[1].cells[-2] == "11x"


def test_layout_has_a_column_only_where_it_is_not_plain():
    assert not any("micro" in name for name in candidates_table(samples.PLAN).header)
    table = candidates_table(samples.FOUR_DEVICES.plan)
    assert table.header[1] == "micro x accum. x devices"
    assert table.rows[-1].cells[1] == "1,024 x 2 x 4"
    doubled = replace(
        samples.PLAN, candidates=samples.candidates(accumulation=2), accumulation_steps=2
    )
    assert candidates_table(doubled).rows[-1].cells[1] == "4,096 x 2"


def test_a_current_setting_that_was_not_weighed_marks_no_row():
    plan = replace(samples.PLAN, current=Current(batch_size=100, relative_time=1.4))
    assert all(row.mark != "current" for row in candidates_table(plan).rows)


def test_of_several_layouts_the_fastest_stands_for_today():
    slow = replace(samples.PLAN.candidates[3], accumulation_steps=2, relative_time=5.0)
    plan = replace(samples.PLAN, candidates=(slow, *samples.PLAN.candidates))
    (today,) = (row for row in candidates_table(plan).rows if row.mark == "current")
    assert today.cells[1] == "64 x 1"
