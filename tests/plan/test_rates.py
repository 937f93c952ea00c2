"""Which learning rate a plan suggests. Oracle: by hand (rung 1)."""

from dataclasses import replace

import pytest

from rightbatch.plan.inputs import sort_results
from rightbatch.plan.rates import suggest_learning_rate
from rightbatch.results import LRCurve, LRRace, RaceEntry, Status
from tests.plan.made_up import critical, facts, throughput

CURVE = LRCurve(
    batch_size=16, points=(), edge=0.1, suggestion=0.07, low=0.07, high=0.07, status=Status.OK
)
RACE = LRRace(
    batch_size=16,
    entries=(RaceEntry(learning_rate=0.09, steps=9, loss=1.0, low=1.0, high=1.0),),
    suggestion=0.09,
    low=0.09,
    high=0.09,
    status=Status.OK,
)


def suggested(*results: object) -> tuple[float | None, str]:
    inputs = sort_results((throughput(), critical(), facts(), *results))
    return suggest_learning_rate(inputs, 16, critical=160.0)


@pytest.mark.parametrize(
    ("suggestion", "rate"), [(0.04, 0.04), (0.05, 0.05), (0.07, 0.05), (0.2, 0.05)]
)
def test_a_rate_that_nothing_confirmed_stays_below_half_the_edge(
    suggestion: float, rate: float
) -> None:
    found, source = suggested(replace(CURVE, suggestion=suggestion))
    assert found == pytest.approx(rate)
    assert ("capped" in source) == (suggestion > 0.05)


def test_a_rate_that_won_its_race_at_this_size_is_not_capped() -> None:
    assert suggested(CURVE, RACE) == (0.09, "won a race of 1 rates at batch size 16")


def test_a_rate_that_won_at_another_size_is_capped() -> None:
    found, source = suggested(CURVE, replace(RACE, batch_size=8))
    assert found == pytest.approx(0.05)
    assert "capped at half the edge" in source
