"""Predicted, then executed. Oracle: a device whose largest size is known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rightbatch.hardware.feasible import largest_within, search_predicted
from rightbatch.hardware.search import ProbeOutcome
from rightbatch.results import Status

BUDGET = 1_000_000
PIECES = st.lists(
    st.tuples(st.integers(0, BUDGET // 2), st.integers(1, 20_000)), min_size=1, max_size=4
)


def peak_of(pieces):
    return lambda size: max(fixed + slope * size for fixed, slope in pieces)


def true_largest(peak, budget, cap):
    low, high = 0, cap
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if peak(middle) <= budget else (low, middle - 1)
    return low


@given(PIECES, st.integers(1, 10**6))
def test_finds_the_largest_predicted_size(pieces, cap):
    calls = []

    def predict(size):
        calls.append(size)
        return peak_of(pieces)(size)

    assert largest_within(predict, cap, BUDGET) == true_largest(peak_of(pieces), BUDGET, cap)
    assert len(set(calls)) < 90


def test_a_straight_line_takes_few_predictions():
    calls = set()

    def predict(size):
        calls.add(size)
        return 1000 + 37 * size

    assert largest_within(predict, 10**6, BUDGET) == (BUDGET - 1000) // 37
    assert len(calls) <= 16


@given(PIECES, st.floats(1.0, 2.5), st.integers(0, BUDGET // 10), st.integers(1, 10**6))
def test_only_what_ran_is_returned_and_the_bound_holds(pieces, overhead, more, cap):
    predict = peak_of(pieces)

    def real(size):
        return int(overhead * predict(size)) + more

    ran = {}

    def probe(size):
        assert 1 <= size <= cap
        ran[size] = real(size) <= BUDGET
        return ProbeOutcome("ok", real(size)) if ran[size] else ProbeOutcome("oom", None)

    profile = search_predicted(predict, probe, cap=cap, budget_bytes=BUDGET)
    truth = true_largest(real, BUDGET, cap)
    found = profile.max_verified_batch_size
    assert found == 0 or ran[found]
    assert found <= truth
    assert profile.upper_bound is None or truth <= profile.upper_bound
    assert profile.upper_bound is not None or profile.status is Status.CAPPED
    assert (found > 0) == (truth > 0)
    if overhead <= 1.5 and truth > 20:
        assert len(ran) <= 3
        assert found >= 0.8 * truth


def test_nothing_runs_where_one_example_cannot_fit():
    profile = search_predicted(lambda size: 500 * size, pytest.fail, cap=100, budget_bytes=499)
    assert profile.status is Status.NOTHING_FITS
    assert (profile.max_verified_batch_size, profile.upper_bound) == (0, 0)
    assert [(p.source, p.outcome, p.peak_bytes) for p in profile.points] == [
        ("fake", "over_budget", 500)
    ]


@pytest.mark.parametrize("outcome", ["oom", "killed", "limit", "thrash", "leak"])
def test_goes_down_after_a_failure(outcome):
    def probe(size):
        return ProbeOutcome("ok", 12 * size) if size <= 40 else ProbeOutcome(outcome, None)

    profile = search_predicted(lambda size: 10 * size, probe, cap=1000, budget_bytes=1000)
    assert 30 <= profile.max_verified_batch_size <= 40
    assert {p.outcome for p in profile.points if p.batch_size > 40 and p.source == "real"} == {
        outcome
    }


@pytest.mark.parametrize("outcome", ["slow", "hang"])
def test_time_that_runs_out_is_told(outcome):
    def probe(size):
        return ProbeOutcome("ok", 12 * size) if size <= 20 else ProbeOutcome(outcome, None)

    profile = search_predicted(lambda size: 10 * size, probe, cap=1000, budget_bytes=1000)
    assert 1 <= profile.max_verified_batch_size <= 20
    assert profile.status is Status.OUT_OF_TIME


def test_gives_up_where_even_the_smallest_hangs():
    profile = search_predicted(
        lambda size: size, lambda size: ProbeOutcome("hang", None), cap=9, budget_bytes=1000
    )
    assert (profile.max_verified_batch_size, profile.status) == (0, Status.OUT_OF_TIME)


def test_a_peak_over_the_budget_is_no_fit_though_it_ran():
    profile = search_predicted(
        lambda size: size, lambda size: ProbeOutcome("ok", 3 * size), cap=999, budget_bytes=300
    )
    assert 85 <= profile.max_verified_batch_size <= 100
    assert "over_budget" in {p.outcome for p in profile.points if p.source == "real"}
