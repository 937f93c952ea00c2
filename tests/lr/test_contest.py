"""Oracles: hand-made runs for the verdict; bowls on a fake clock for the rungs."""

import math

import pytest

from rightbatch._time import Deadline, no_progress
from rightbatch.lr.arena import Arena, Run
from rightbatch.lr.contest import Contest, is_settled, judge, ranking
from rightbatch.lr.course import lay_out
from rightbatch.lr.judging import Mark
from rightbatch.lr.stepping import Pace
from rightbatch.results import Status
from tests.lr.doubles import TickingClock, bowl

WEIGHTS = (1.0, 1.0, 1.0, 1.0)
STEPS = (0, 4, 8, 16, 32, 64)


def run(rate: float, loss: float, *, lap: int = 0, steps: int = 64, alive: bool = True) -> Run:
    """Fall from 10 to ``loss`` within the first four steps, and stay there."""
    marks = [Mark(s, (loss if s else 10.0,) * 4) for s in STEPS if s <= steps]
    return Run(rate, lap, marks, None, alive=alive, step=steps)


def verdict(*runs: Run):
    return judge(runs, WEIGHTS, batch_size=8)


def test_the_ranking_is_of_those_who_came_furthest() -> None:
    runs = [run(0.1, 3.0), run(0.2, 1.0, steps=16), run(0.4, 2.0), run(0.8, 0.1, alive=False)]
    assert [r.learning_rate for r in ranking(runs, WEIGHTS)] == [0.4, 0.1]
    assert ranking([run(0.1, 1.0, steps=0)], WEIGHTS) == []


def test_if_all_who_went_on_diverged_those_who_had_stopped_are_ranked() -> None:
    runs = [run(0.1, 3.0, steps=16), run(0.2, 2.0, steps=16), run(0.4, 1.0, alive=False)]
    assert [r.learning_rate for r in ranking(runs, WEIGHTS)] == [0.2, 0.1]


def test_further_laps_can_overturn_the_first() -> None:
    first = [run(0.1, 2.0), run(0.2, 1.9), run(0.4, 5.0)]
    assert verdict(*first).suggestion == 0.2
    laps = [run(rate, loss, lap=lap) for lap in (1, 2) for rate, loss in ((0.1, 1.0), (0.2, 3.0))]
    assert verdict(*first, *laps).suggestion == 0.1


def test_a_rate_that_diverges_in_any_lap_does_not_win() -> None:
    first = [run(0.1, 2.0), run(0.2, 1.0), run(0.4, 5.0)]
    laps = [run(0.1, 2.0, lap=1), run(0.2, 1.0, lap=1, alive=False, steps=4)]
    result = verdict(*first, *laps)
    assert result.suggestion == 0.1
    assert result.high == 0.1


def test_the_verdict_without_anybody_left() -> None:
    diverged = [run(0.1, 1.0, alive=False, steps=8), run(0.2, 1.0, alive=False, steps=4)]
    assert (verdict(*diverged).status, verdict(*diverged).suggestion) == (Status.AT_THE_END, None)
    unborn = [run(0.1, 1.0, steps=0), run(0.2, 1.0, steps=0)]
    assert (verdict(*unborn).status, verdict(*unborn).suggestion) == (Status.OUT_OF_TIME, None)


def test_a_diverged_neighbour_is_a_neighbour() -> None:
    runs = [run(0.1, 2.0), run(0.2, 1.0)]
    assert verdict(*runs).status is Status.AT_THE_END
    assert verdict(*runs, run(0.4, 1.0, alive=False, steps=4)).status is Status.OK


def test_half_the_winner_is_suggested_while_the_loss_falls_and_lies_in_the_interval() -> None:
    falling = [Mark(s, (10.0 - s / 10,) * 4) for s in STEPS]
    runs = [Run(rate, 0, falling, None, step=64) for rate in (0.1, 0.2, 0.4)]
    result = verdict(*runs)
    assert result.status is Status.OUT_OF_TIME
    assert result.suggestion == 0.05
    assert (result.low, result.high) == (0.05, 0.4)


def test_early_leavers_are_compared_where_they_left() -> None:
    early = run(0.2, 1.0, steps=16)  # as good as the winner was by then
    late = run(0.1, 1.0)
    assert (verdict(early, late).low, verdict(early, late).high) == (0.1, 0.2)


@pytest.mark.parametrize(("steps", "settled"), [(8, False), (16, False), (32, True)])
def test_a_race_is_not_over_before_some_steps(steps: int, settled: bool) -> None:
    assert is_settled([run(0.1, 1.0, steps=steps)], WEIGHTS) is settled


def contest(clock: TickingClock, *, curvature: float = 1.0, seconds: float = 100.0) -> Contest:
    task = bowl(curvature, clock=clock)
    course = lay_out(task, size=4, affordable_chunks=4, seed=0)
    weights = (4.0,) * len(course.held_out)
    arena = Arena(task, course, Deadline(seconds, clock), 0, weights)
    pace = Pace(start=0.0, load=0.0, step=clock.tick_seconds, forward=clock.tick_seconds)
    return Contest(arena, pace, 2, open_ended=True, progress=no_progress)


def rates_and_laps(made: Contest) -> set[tuple[float, int]]:
    return {(round(run.learning_rate, 6), run.lap) for run in made.runs}


def test_time_that_is_left_goes_to_rates_in_between_and_to_further_laps() -> None:
    made = contest(TickingClock(0.001))
    made.halve([0.4, 0.8, 1.6])
    made.refine()
    between = {(round(math.sqrt(0.32), 6), 0), (round(math.sqrt(1.28), 6), 0)}
    assert between <= rates_and_laps(made)
    assert {lap for _, lap in rates_and_laps(made)} == {0, 1, 2}
    assert len([lap for _, lap in rates_and_laps(made) if lap == 2]) == 3


def test_a_lap_that_the_time_cuts_short_does_not_count() -> None:
    clock = TickingClock(0.001)
    made = contest(clock, seconds=5.0)
    made.open_ended = False
    made.halve([0.4, 0.8, 1.6])
    assert clock.now < 1.0
    clock.tick_seconds = 0.2  # fitted as long as losses took a thousandth of a second
    made.refine()
    assert clock.now > 5.0
    assert {lap for _, lap in rates_and_laps(made)} == {0}


def test_a_race_that_has_not_settled_is_not_refined() -> None:
    made = contest(TickingClock(0.01), curvature=1e-4)
    made.halve([0.1, 0.2])
    before = rates_and_laps(made)
    made.refine()
    assert rates_and_laps(made) == before


def test_every_rung_doubles_the_steps_and_halves_the_field() -> None:
    clock = TickingClock(0.01)
    made = contest(clock, curvature=1e-4, seconds=200.0)
    made.open_ended = False
    made.halve([0.01 * 2**k for k in range(8)])
    steps = sorted(run.step for run in made.runs)
    assert steps[0] == steps[3] < steps[4] == steps[5] < steps[6] == steps[7]
    assert steps[4] / steps[0] == pytest.approx(2.0, rel=0.25)
    assert steps[6] / steps[4] == pytest.approx(2.0, rel=0.25)
    longest = [run.learning_rate for run in made.runs if run.step == steps[-1]]
    assert longest == [0.64, 1.28]
