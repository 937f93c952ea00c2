"""The batch size search. Oracle: closed form (the largest size under chosen lines), and laws."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rightbatch.hardware.search import Probe, ProbeOutcome, search
from rightbatch.results import MemoryProfile, Status
from rightbatch.testing import FakeMemory

GIB = 2**30
NO_LIMIT = 2**60


def most_probes(cap: int) -> int:
    """Growth by 4 needs half a probe per doubling; a bisection one. Both, and a few to settle."""
    return math.ceil(1.5 * math.log2(cap)) + 8


def executed_ok(profile: MemoryProfile) -> list[int]:
    return [point.batch_size for point in profile.points if point.outcome == "ok"]


def fails_above(limit: int, outcome: str) -> Probe:
    """A memory that says nothing before it is full."""
    return lambda size: ProbeOutcome(outcome, None) if size > limit else ProbeOutcome("ok", 1000)


@pytest.mark.parametrize("outcome", ["oom", "limit"])
@pytest.mark.parametrize("limit", [1, 2, 7, 8, 9, 63, 1000, 1001, 4095])
def test_a_limit_without_warning_is_found_within_two_percent(limit: int, outcome: str) -> None:
    profile = search(fails_above(limit, outcome), cap=4096, first=8, budget_bytes=1100)
    assert limit - max(1, 0.02 * limit) <= profile.max_verified_batch_size <= limit
    assert profile.upper_bound is not None
    assert limit <= profile.upper_bound
    assert profile.status is Status.OK
    assert len(profile.points) <= most_probes(4096)


CURVES = {
    "straight": [(0, 3)],
    "with a fixed part": [(1000, 3)],
    "flat, then steep": [(5000, 0), (0, 40)],
    "four pieces": [(9000, 0), (8000, 2), (4000, 11), (0, 29)],
    "steep from the start": [(0, 9000)],
}


@pytest.mark.parametrize("budget_bytes", [9500, 30_000, 10**6, 10**9])
@pytest.mark.parametrize("pieces", CURVES.values(), ids=CURVES)
@pytest.mark.parametrize("overshoot", [1.25, math.inf])
def test_convex_curves_are_solved_in_few_probes(
    pieces: list[tuple[int, int]], budget_bytes: int, overshoot: float
) -> None:
    memory = FakeMemory(pieces, limit_bytes=2 * budget_bytes)
    profile = search(memory, cap=2**20, first=8, budget_bytes=budget_bytes, overshoot=overshoot)
    largest = min(memory.largest_batch_size(budget_bytes=budget_bytes) or 0, 2**20)
    if largest == 2**20:
        assert profile.status is Status.CAPPED
        assert profile.max_verified_batch_size == 2**20
    else:
        assert profile.status is Status.OK
        assert profile.max_verified_batch_size >= largest / 1.1 - 1
    assert len(memory.calls) <= (14 if math.isinf(overshoot) else 20)


def test_the_cap_itself_is_executed_where_everything_fits() -> None:
    memory = FakeMemory([(0, 1)], limit_bytes=NO_LIMIT)
    profile = search(memory, cap=1797, first=32, budget_bytes=NO_LIMIT)
    assert profile.max_verified_batch_size == 1797
    assert memory.calls == [32, 128, 512, 1797]
    assert profile.status is Status.CAPPED


def test_a_cap_of_one_is_tried() -> None:
    profile = search(FakeMemory([(0, 1)], limit_bytes=10), cap=1, first=8, budget_bytes=10)
    assert (profile.max_verified_batch_size, profile.status) == (1, Status.CAPPED)


def test_nothing_fits() -> None:
    memory = FakeMemory([(100, 1)], limit_bytes=50)
    profile = search(memory, cap=1000, first=8, budget_bytes=50)
    assert memory.calls == [8, 4, 2, 1]
    assert (profile.max_verified_batch_size, profile.upper_bound) == (0, 0)
    assert profile.status is Status.NOTHING_FITS


def test_no_size_below_the_floor_is_tried() -> None:
    memory = FakeMemory([(100, 1)], limit_bytes=50)
    profile = search(memory, cap=1000, first=7, budget_bytes=50, floor=2)
    assert memory.calls == [7, 3, 2]
    assert profile.status is Status.NOTHING_FITS


def test_a_peak_over_the_budget_does_not_count_as_fitting() -> None:
    memory = FakeMemory([(0, 10)], limit_bytes=NO_LIMIT)
    profile = search(memory, cap=1000, first=64, budget_bytes=100)
    assert profile.points[0].outcome == "over_budget"
    assert (profile.points[0].batch_size, profile.points[0].peak_bytes) == (64, 640)
    assert profile.max_verified_batch_size == 10


def test_a_first_size_that_fails_is_approached_again_from_below() -> None:
    memory = FakeMemory([(0, 10)], limit_bytes=10 * 50)
    profile = search(memory, cap=1000, first=64, budget_bytes=NO_LIMIT)
    assert memory.calls[:2] == [64, 32]
    assert profile.max_verified_batch_size >= 49


def test_predicted_sizes_are_not_tried_beyond_the_line_through_two() -> None:
    memory = FakeMemory([(0, 10)], limit_bytes=NO_LIMIT)
    search(memory, cap=2**20, first=8, budget_bytes=1000)
    assert memory.calls == [8, 32, 94, 100]


def test_no_size_is_tried_that_could_overshoot_the_budget_by_more_than_allowed() -> None:
    """The next piece may be as steep as from the origin, which two flat points do not show."""
    memory = FakeMemory([(900, 0), (0, 25)], limit_bytes=NO_LIMIT)
    search(memory, cap=2**20, first=8, budget_bytes=1000, overshoot=1.25)
    assert max(memory.peak_bytes(size) for size in memory.calls[1:]) <= 1250


class Spiky:
    """Convex but for one size whose workspace is large (seen with convolutions)."""

    def __init__(self, spike: int) -> None:
        self.spike, self.calls = spike, list[int]()

    def __call__(self, size: int) -> ProbeOutcome:
        self.calls.append(size)
        failed = size == self.spike or size > 5000
        return ProbeOutcome("oom", None) if failed else ProbeOutcome("ok", 100 + size)


@pytest.mark.parametrize("spike", [8, 32, 128, 2048])
def test_one_spike_does_not_hide_the_sizes_above_it(spike: int) -> None:
    probe = Spiky(spike)
    profile = search(probe, cap=4096, first=8, budget_bytes=10_000)
    assert profile.max_verified_batch_size == 4096


def test_a_transient_error_is_not_believed_where_there_is_room() -> None:
    tried: list[int] = []

    def probe(size: int) -> ProbeOutcome:
        tried.append(size)
        return ProbeOutcome("oom", None) if len(tried) == 3 else ProbeOutcome("ok", size)

    profile = search(probe, cap=10_000, first=8, budget_bytes=10**6)
    assert profile.max_verified_batch_size == 10_000
    assert [point.outcome for point in profile.points].count("oom") == 1


def test_two_failures_are_believed_although_there_seemed_to_be_room() -> None:
    memory = fails_above(100, "oom")
    profile = search(memory, cap=10_000, first=8, budget_bytes=10**9)
    assert 98 <= profile.max_verified_batch_size <= 100
    assert profile.status is Status.OK


def test_a_failure_that_leaks_never_makes_an_untried_size_feasible() -> None:
    leaked, limit = 0, 1000

    def probe(size: int) -> ProbeOutcome:
        nonlocal leaked
        if leaked + size > limit:
            leaked = min(leaked + 300, 900)
            return ProbeOutcome("oom", None)
        return ProbeOutcome("ok", leaked + size)

    profile = search(probe, cap=4096, first=512, budget_bytes=limit)
    assert profile.max_verified_batch_size in executed_ok(profile)
    assert len(profile.points) <= most_probes(4096)


def test_time_that_runs_out_leaves_what_was_verified() -> None:
    memory = FakeMemory([(0, 1)], limit_bytes=NO_LIMIT)
    allowed = iter([True, True, *[False] * 100])
    profile = search(
        memory, cap=2**20, first=8, budget_bytes=NO_LIMIT, may_start=lambda _: next(allowed)
    )
    assert memory.calls == [8, 32, 128]
    assert (profile.max_verified_batch_size, profile.status) == (128, Status.OUT_OF_TIME)


def test_a_smaller_step_is_taken_where_the_next_does_not_fit_in_time() -> None:
    memory = FakeMemory([(0, 1)], limit_bytes=NO_LIMIT)
    profile = search(
        memory, cap=2**20, first=8, budget_bytes=NO_LIMIT, may_start=lambda size: size <= 100
    )
    assert memory.calls == [8, 32, 64]
    assert (profile.max_verified_batch_size, profile.status) == (64, Status.OUT_OF_TIME)


def test_time_that_runs_out_before_anything_fits_is_not_called_nothing_fits() -> None:
    memory = FakeMemory([(100, 1)], limit_bytes=50)
    profile = search(memory, cap=9, first=8, budget_bytes=50, may_start=lambda _: False)
    assert memory.calls == [8]
    assert (profile.max_verified_batch_size, profile.status) == (0, Status.OUT_OF_TIME)


@pytest.mark.parametrize(("slow_from", "verified"), [(1, 0), (8, 4), (30, 8)])
def test_a_size_that_is_too_slow_ends_the_search_for_time(slow_from: int, verified: int) -> None:
    def probe(size: int) -> ProbeOutcome:
        return ProbeOutcome("slow", None) if size >= slow_from else ProbeOutcome("ok", size)

    profile = search(probe, cap=1000, first=8, budget_bytes=10**6)
    assert (profile.max_verified_batch_size, profile.status) == (verified, Status.OUT_OF_TIME)


def test_predicted_points_say_so() -> None:
    def predict(size: int) -> ProbeOutcome:
        return ProbeOutcome("ok", 3 * size, "fake")

    profile = search(predict, cap=100, first=8, budget_bytes=NO_LIMIT)
    assert {point.source for point in profile.points} == {"fake"}


# Laws.

pieces_of_curves = st.lists(
    st.tuples(st.integers(0, 10_000), st.integers(0, 500)), min_size=1, max_size=4
)
caps, firsts = st.integers(1, 2**16), st.integers(1, 300)
budgets = st.integers(1, 10**7)
stops = st.one_of(st.just(2**17), st.integers(1, 2**16))


def searched(
    probe: Callable[[int], ProbeOutcome], cap: int, first: int, budget_bytes: int, stop: int = 2**17
) -> MemoryProfile:
    return search(
        probe,
        cap=cap,
        first=first,
        budget_bytes=budget_bytes,
        may_start=lambda size: size <= stop,
        overshoot=1.25,
    )


@given(pieces=pieces_of_curves, cap=caps, first=firsts, budget=budgets, limit=budgets, stop=stops)
def test_the_answer_was_executed_and_fits_and_the_bound_holds(
    pieces: list[tuple[int, int]], cap: int, first: int, budget: int, limit: int, stop: int
) -> None:
    memory = FakeMemory(pieces, limit_bytes=limit)
    profile = searched(memory, cap, first, budget, stop)
    size, bound = profile.max_verified_batch_size, profile.upper_bound
    if size > 0:
        assert size in executed_ok(profile)
        assert size in memory.calls
        assert memory.peak_bytes(size) <= budget
    assert max(memory.calls) <= cap
    assert [point.batch_size for point in profile.points] == memory.calls
    largest = memory.largest_batch_size(budget_bytes=budget)
    if bound is not None:
        assert size <= bound
        assert largest is not None
        assert largest <= bound
    assert (profile.status is Status.CAPPED) == (size == cap)


@given(pieces=pieces_of_curves, cap=caps, first=firsts, smaller=budgets, larger=budgets)
def test_more_memory_never_means_a_smaller_batch_beyond_the_precision(
    pieces: list[tuple[int, int]], cap: int, first: int, smaller: int, larger: int
) -> None:
    smaller, larger = sorted((smaller, larger))
    less, more = (
        searched(FakeMemory(pieces, limit_bytes=NO_LIMIT), cap, first, budget)
        for budget in (smaller, larger)
    )
    assert 1.1 * more.max_verified_batch_size + 1 >= less.max_verified_batch_size


@given(
    first=firsts,
    cap=caps,
    outcomes=st.lists(st.sampled_from(["ok", "oom", "limit", "slow"]), min_size=1, max_size=60),
    peaks=st.lists(st.integers(0, 1000), min_size=1, max_size=7),
)
def test_any_memory_whatever_ends_the_search_with_an_executed_size(
    first: int, cap: int, outcomes: list[str], peaks: list[int]
) -> None:
    """No convexity, no order, no memory of the past: only termination and honesty are left."""
    calls: list[int] = []

    def probe(size: int) -> ProbeOutcome:
        outcome = outcomes[len(calls) % len(outcomes)]
        calls.append(size)
        peak = peaks[len(calls) % len(peaks)]
        return ProbeOutcome(outcome, peak if outcome == "ok" else None)

    profile = searched(probe, cap, first, 800)
    assert profile.max_verified_batch_size == max(executed_ok(profile), default=0)
    assert len(calls) < 400


@pytest.mark.parametrize(("leaks_above", "tried"), [(0, [8]), (10, [8, 32])])
def test_a_leak_ends_it(leaks_above: int, tried: list[int]) -> None:
    def probe(size: int) -> ProbeOutcome:
        return ProbeOutcome("leak" if size > leaks_above else "ok", 10 * size)

    profile = search(probe, cap=1000, first=8, budget_bytes=5000)
    assert [p.batch_size for p in profile.points] == tried
    assert profile.status is Status.LEAK
    assert profile.max_verified_batch_size == (8 if leaks_above else 0)
