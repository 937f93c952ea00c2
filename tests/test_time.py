"""The deadline against a clock that the test moves. Oracle: closed form."""

import pytest

from rightbatch._time import Deadline, no_progress


class Clock:
    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_budget_counts_from_the_moment_it_was_made() -> None:
    clock = Clock()
    deadline = Deadline(10.0, clock=clock)
    assert (deadline.elapsed_seconds(), deadline.remaining_seconds()) == (0.0, 10.0)
    clock.now += 4.0
    assert (deadline.elapsed_seconds(), deadline.remaining_seconds()) == (4.0, 6.0)
    assert deadline.fraction() == 0.4


@pytest.mark.parametrize(
    ("after", "passed", "fraction"), [(9.0, False, 0.9), (10.0, True, 1.0), (25.0, True, 1.0)]
)
def test_passes_exactly_when_the_budget_is_spent(
    after: float, passed: bool, fraction: float
) -> None:
    clock = Clock()
    deadline = Deadline(10.0, clock=clock)
    clock.now += after
    assert deadline.passed() is passed
    assert deadline.fraction() == fraction


def test_an_overspent_budget_has_negative_time_left() -> None:
    clock = Clock()
    deadline = Deadline(10.0, clock=clock)
    clock.now += 25.0
    assert deadline.remaining_seconds() == -15.0


def test_an_empty_budget_is_spent_at_once() -> None:
    deadline = Deadline(0.0, clock=Clock())
    assert deadline.passed()
    assert deadline.fraction() == 1.0


def test_two_deadlines_on_one_clock_are_independent() -> None:
    clock = Clock()
    early = Deadline(10.0, clock=clock)
    clock.now += 8.0
    late = Deadline(10.0, clock=clock)
    clock.now += 4.0
    assert early.passed()
    assert not late.passed()


def test_progress_to_nobody_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    no_progress(0.5, "measuring")
    assert capsys.readouterr() == ("", "")
