"""Throughput in words, tables and figures. Oracle: closed form (numbers by hand)."""

from dataclasses import replace

import pytest

from rightbatch.report.hardware_figures import throughput_figure
from rightbatch.report.tables import tables
from rightbatch.report.text import render_text
from rightbatch.report.throughput_tables import clocks_table, step_table, workers_table
from rightbatch.report.words import findings
from rightbatch.results import (
    LoopClocks,
    Results,
    StepShape,
    StepShares,
    ThroughputProfile,
    WorkerPoint,
)
from tests.report.samples import ENVIRONMENT, NOISE, TASK, THROUGHPUT

CLOCKS = LoopClocks(
    batch_size=64,
    num_workers=2,
    load_seconds=0.3,
    step_seconds=0.05,
    total_seconds=0.31,
    overlap=0.8,
)
SLOW_LOADER = replace(
    THROUGHPUT,
    bottleneck="loading",
    evidence="Loading takes 300 ms.",
    advice="No batch size helps: try num_workers=4.",
    clocks=CLOCKS,
    shares=StepShares(batch_size=64, forward=0.25, backward=0.6, optimizer=0.15),
    workers=tuple(WorkerPoint(num_workers=count, load_seconds=0.6 / count) for count in (1, 2, 4)),
)


def results(throughput: ThroughputProfile, **more: object) -> Results:
    return replace(Results(task=TASK, environment=ENVIRONMENT, throughput=throughput), **more)


def text_of(throughput: ThroughputProfile, **more: object) -> str:
    (finding,) = (f for f in findings(results(throughput, **more)) if f.part == "throughput")
    return finding.text


def test_the_command_says_why_and_what_to_try() -> None:
    assert text_of(SLOW_LOADER).endswith(
        "; input-bound. Loading takes 300 ms. No batch size helps: try num_workers=4"
    )


def test_beside_a_plan_only_what_a_larger_batch_cannot_help_is_explained() -> None:
    assert "try num_workers=4" in text_of(SLOW_LOADER, noise=NOISE)
    launch = replace(SLOW_LOADER, bottleneck="overhead")
    assert "try" not in text_of(launch, noise=NOISE)
    assert "try" in text_of(launch)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("compute", "compute-bound"),
        ("overhead", "launch-bound"),
        ("loading", "input-bound"),
        ("sync", "sync-bound"),
        ("padding", "padding-bound"),
        ("thrashing", "thrashing"),
        ("mixed", "no single limit"),
        ("a later name", "a later name"),
    ],
)
def test_every_bottleneck_has_its_words(name: str, words: str) -> None:
    assert f"; {words}" in text_of(replace(THROUGHPUT, bottleneck=name))


def test_a_file_from_before_the_evidence_reads_as_it_did() -> None:
    assert text_of(THROUGHPUT).endswith("; launch-bound")
    assert [table.title for table in tables(results(THROUGHPUT), "throughput")] == [
        "One optimizer step"
    ]


def test_clocks_and_parts_stand_in_one_row() -> None:
    table = clocks_table(SLOW_LOADER)
    assert table.title == "Where a step goes at batch size 64"
    (row,) = table.rows
    assert dict(zip(table.header, row.cells, strict=True)) == {
        "loading alone": "300 ms",
        "computing alone": "50 ms",
        "the loop": "310 ms",
        "forward": "25 %",
        "backward": "60 %",
        "optimizer": "15 %",
    }
    assert "with 2 loader processes" in table.note
    without = clocks_table(replace(SLOW_LOADER, shares=None))
    assert without.header == ("loading alone", "computing alone", "the loop")


def test_todays_workers_are_marked() -> None:
    table = workers_table(SLOW_LOADER)
    assert [(*row.cells, row.mark) for row in table.rows] == [
        ("1", "600 ms", ""),
        ("2", "300 ms", "current"),
        ("4", "150 ms", ""),
    ]


@pytest.mark.parametrize(("share", "said"), [(None, False), (0.05, False), (0.35, True)])
def test_a_busy_machine_is_told_of(share: float | None, said: bool) -> None:
    points = tuple(replace(point, crowded_share=share) for point in THROUGHPUT.points)
    note = step_table(replace(THROUGHPUT, points=points)).note
    assert ("up to 35 % of the time" in note) is said


def test_the_text_shows_all_three_tables() -> None:
    text = render_text(results(SLOW_LOADER))
    places = [
        text.index(title)
        for title in ("One optimizer step", "Where a step goes", "Loading a batch of 64")
    ]
    assert places == sorted(places)


def test_the_bend_is_drawn_through_its_formula() -> None:
    """With g = 2 and both parts 3 and 4 ms at the last size, a step there takes 5 ms."""
    last = THROUGHPUT.points[-1].batch_size
    shape = StepShape(
        alpha_seconds=0.003,
        beta_seconds_per_example=0.004 / last,
        sharpness=2.0,
        residual=0.01,
    )
    figure = throughput_figure(results(replace(THROUGHPUT, shape=shape)))
    assert figure is not None
    (bend,) = (trace for trace in figure.data if "sharpness 2" in trace.name)
    assert bend.y[-1] == pytest.approx(last / 0.005)


def test_a_sharp_bend_does_not_overflow() -> None:
    shape = StepShape(
        alpha_seconds=1e-12, beta_seconds_per_example=1e3, sharpness=32.0, residual=0.0
    )
    figure = throughput_figure(results(replace(THROUGHPUT, shape=shape)))
    assert figure is not None
    (bend,) = (trace for trace in figure.data if "sharpness" in trace.name)
    assert bend.y[-1] == pytest.approx(1e-3)
