"""No try begins for which no time is left, and none is told of. Oracles: chosen clocks."""

import json
import math
from pathlib import Path

import pytest

from rightbatch.hardware import measure_memory
from rightbatch.hardware.feasible import search_predicted
from rightbatch.hardware.isolation import Isolated
from rightbatch.hardware.search import ProbeOutcome
from rightbatch.results import Status
from rightbatch.testing import FakeClock, QuadraticTask


@pytest.mark.parametrize("begun", [0, 1])
def test_tries_that_were_not_begun_leave_no_point(begun: int) -> None:
    """Real is twice predicted, so that one try is not enough; 500 is what predictions bound."""
    allowed = iter([True] * begun + [False])
    profile = search_predicted(
        lambda size: 2 * size,
        lambda size: ProbeOutcome("ok", 4 * size),
        cap=10**6,
        budget_bytes=1000,
        may_start=lambda size: next(allowed),
    )
    real = [p for p in profile.points if p.source == "real"]
    assert (len(real), profile.status, profile.upper_bound) == (begun, Status.OUT_OF_TIME, 500)
    assert (profile.max_verified_batch_size > 0) == (begun > 0 and real[0].outcome == "ok")


def test_no_process_is_started_after_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()

    def late(fraction: float, note: str) -> None:
        if note == "memory: predicting":
            clock.advance(11.0)

    monkeypatch.setattr(Isolated, "try_size", pytest.fail)
    task = QuadraticTask(examples=32).task
    profile = measure_memory(task, time_budget_seconds=10.0, clock=clock, progress=late)
    assert (profile.max_verified_batch_size, profile.status) == (0, Status.OUT_OF_TIME)
    assert {point.source for point in profile.points} == {"fake"}


@pytest.mark.parametrize(("left", "patience"), [(60.0, 6.0), (200.0, 20.0), (math.inf, 20.0)])
def test_quick_steps_go_on_for_a_tenth_of_the_time_and_twenty_seconds_at_most(
    monkeypatch: pytest.MonkeyPatch, left: float, patience: float
) -> None:
    told: list[float] = []

    def run(command: list[str], timeout: float) -> tuple[int, str]:
        folder = Path(command[-1])
        told.append(json.loads((folder / "job.json").read_text())["patience_seconds"])
        (folder / "answer.json").write_text('{"outcome": "slow"}')
        return 0, ""

    monkeypatch.setattr("rightbatch.hardware.isolation._run", run)
    with Isolated(QuadraticTask(examples=8).task) as isolated:
        isolated.try_size(4, budget_bytes=2**20, seconds=left)
    assert told == [patience]
