"""Two real ranks, and a made group whose averaging takes a known time (rung 1)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rightbatch as rb
from rightbatch._comm import gradients_apart
from rightbatch.hardware.communication import gradient_buckets, measure_communication
from rightbatch.results import Status
from rightbatch.testing import FakeClock
from tests.hardware.tasks import Mean, task_with
from tests.laws import assert_same_world, snapshot
from tests.ranks import on_two_ranks


class SlowLink:
    """Three ranks of which this is the second; averaging takes 2 s and other ranks no longer."""

    rank, world_size = 1, 3
    together = False

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.averaged: list[int] = []

    def sum(self, values: Tensor) -> Tensor:
        self.clock.advance(1.0)  # waiting for the others
        self.together = True
        return values

    def average_(self, values: Tensor) -> None:
        self.averaged.append(values.numel())
        self.clock.advance(2.0 if self.together else 7.0)  # else some are late
        self.together = False


def test_averaging_is_timed_apart_from_waiting() -> None:
    clock = FakeClock()
    link = SlowLink(clock)
    task = task_with(lambda size: None, model=Mean())
    found = measure_communication(task, comm=link, rounds=3, clock=clock)
    assert found is not None
    assert (found.allreduce_seconds, found.low, found.high) == (2.0, 2.0, 2.0)
    assert found.gradient_bytes == 8
    assert found.gbps == pytest.approx(2 * (2 / 3) * 64 / 2.0 / 1e9, rel=1e-12)  # 64 bits in 2 s
    assert (found.no_sync_step_seconds, found.sync_step_seconds) == (None, None)
    assert found.status is Status.OK
    assert link.averaged == [1] * 5  # two rounds of warm-up


def test_a_time_that_varies_by_more_than_a_decade_is_no_measurement() -> None:
    clock = FakeClock()

    class Erratic(SlowLink):
        def average_(self, values: Tensor) -> None:
            self.averaged.append(1)
            clock.advance(1.0 if len(self.averaged) % 2 else 100.0)

    task = task_with(lambda size: None)
    found = measure_communication(task, comm=Erratic(clock), rounds=10, clock=clock)
    assert found is not None
    assert found.status is Status.DISAGREE


def test_warming_up_does_not_count() -> None:
    clock = FakeClock()

    class SlowAtFirst(SlowLink):
        def average_(self, values: Tensor) -> None:
            self.averaged.append(1)
            clock.advance(2.0 if len(self.averaged) > 2 else 90.0)

    found = measure_communication(
        task_with(lambda size: None), comm=SlowAtFirst(clock), rounds=4, clock=clock
    )
    assert found is not None
    assert (found.allreduce_seconds, found.low, found.high) == (2.0, 2.0, 2.0)


class FirstOfThree(SlowLink):
    """The first rank: a round takes 1 s of waiting and 2 of averaging, and 1 to agree to go on."""

    rank = 0


@pytest.mark.parametrize(
    ("budget", "counted", "status"),
    [
        (100.0, 6, Status.OK),
        # Five rounds of 3 s, then as many as end in time: 4 s each, and the last look takes 1.
        (23.5, 5, Status.OK),
        (22.0, 4, Status.OK),
        (17.9, 3, Status.OUT_OF_TIME),
        (0.1, 3, Status.OUT_OF_TIME),  # never fewer
        (None, 6, Status.OK),
    ],
)
def test_rounds_end_with_the_budget(budget: float | None, counted: int, status: Status) -> None:
    clock = FakeClock()
    link = FirstOfThree(clock)
    found = measure_communication(
        task_with(lambda size: None),
        comm=link,
        rounds=6,
        time_budget_seconds=budget,
        clock=clock,
    )
    assert found is not None
    assert len(link.averaged) == 2 + counted
    assert found.status is status
    assert found.allreduce_seconds == 2.0


def test_as_few_rounds_as_were_asked_for_are_enough() -> None:
    clock = FakeClock()
    found = measure_communication(
        task_with(lambda size: None),
        comm=FirstOfThree(clock),
        rounds=3,
        time_budget_seconds=0.1,
        clock=clock,
    )
    assert found is not None
    assert found.status is Status.OK


def test_another_ranks_clock_ends_nothing() -> None:
    """The second rank's time is up, and goes on as long as the first one does."""
    clock = FakeClock()
    link = SlowLink(clock)
    measure_communication(
        task_with(lambda size: None), comm=link, rounds=6, time_budget_seconds=0.1, clock=clock
    )
    assert len(link.averaged) == 8


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan")])
def test_no_time_is_refused(budget: float) -> None:
    with pytest.raises(ValueError, match=f"`time_budget_seconds` must be positive, got {budget}"):
        measure_communication(task_with(lambda size: None), time_budget_seconds=budget)


def test_steps_are_timed_at_a_ranks_share_of_todays_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three ranks share 13 examples: 4 each; a step takes a second for each."""

    @contextmanager
    def averaging(model: nn.Module) -> Iterator[bool]:
        yield True

    monkeypatch.setattr("rightbatch.hardware.communication.gradients_apart", averaging)
    clock = FakeClock()
    shared = task_with(lambda size: clock.advance(float(size)), batch_size=13)
    found = measure_communication(shared, comm=SlowLink(clock), rounds=2, clock=clock)
    assert found is not None
    assert (found.sync_step_seconds, found.no_sync_step_seconds) == (4.0, 4.0)


def test_alone_there_is_nothing_to_measure() -> None:
    assert measure_communication(task_with(lambda size: None)) is None


def test_large_gradients_are_sent_in_pieces() -> None:
    sizes = [b.nbytes for b in gradient_buckets([torch.zeros(20 * 2**20 // 8), torch.zeros(2**22)])]
    assert sum(sizes) == 20 * 2**20 + 2**25
    assert max(sizes) == 25 * 2**20


def test_no_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`rounds` must be at least 1, got 0"):
        measure_communication(task_with(lambda size: None), rounds=0)


def task(*, wrapped: bool) -> rb.Task:
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(30, 200), nn.BatchNorm1d(200), nn.Linear(200, 3))
    if wrapped:
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    data = torch.utils.data.TensorDataset(torch.randn(64, 30), torch.randint(3, (64,)))
    return rb.Task(model, optimizer, data, rb.supervised(F.cross_entropy), batch_size=16)


def measured(*, wrapped: bool) -> dict[str, Any]:
    subject = task(wrapped=wrapped)
    subject.check()
    before = snapshot(subject)
    found = measure_communication(subject, rounds=4)
    assert_same_world(before, snapshot(subject))
    assert found is not None
    return asdict(found)


def wrapped_or_not(rank: int) -> list[dict[str, Any]]:
    return [measured(wrapped=True), measured(wrapped=False)]


def short_of_time(rank: int) -> dict[str, Any]:
    """Only the first rank's time ends early, and both stop together."""
    rounds: list[float] = []
    found = measure_communication(
        task(wrapped=True),
        rounds=200,
        time_budget_seconds=1e-3 if rank == 0 else 1e3,
        progress=lambda fraction, note: rounds.append(fraction),
    )
    assert found is not None
    return {"rounds": len(rounds), "status": found.status, "seconds": found.allreduce_seconds}


@pytest.mark.slow
def test_two_ranks_end_after_the_same_round() -> None:
    first, second = on_two_ranks(short_of_time)
    assert first == second
    assert (first["rounds"], first["status"]) == (5, "out_of_time")


@pytest.mark.slow
def test_two_ranks_measure_and_agree() -> None:
    first, second = on_two_ranks(wrapped_or_not)
    assert first == second
    wrapped, plain = first
    assert wrapped["world_size"] == 2
    assert wrapped["gradient_bytes"] == 8 * (30 * 200 + 200 + 400 + 200 * 3 + 3)
    for name in ("allreduce_seconds", "sync_step_seconds", "no_sync_step_seconds", "gbps"):
        assert wrapped[name] > 0
    assert wrapped["low"] <= wrapped["allreduce_seconds"] <= wrapped["high"]
    assert plain["allreduce_seconds"] > 0
    assert plain["sync_step_seconds"] is None


def apart(rank: int) -> dict[str, Any]:
    """Different numbers of steps on the two ranks: one that waited would wait for ever."""
    subject = task(wrapped=True)
    batch = next(subject.batches(4))
    with gradients_apart(subject.model) as averages:
        for _ in range(1 + 3 * rank):
            subject.step(batch)
    return {"averages": averages}


@pytest.mark.slow
def test_steps_apart_wait_for_nobody() -> None:
    assert on_two_ranks(apart) == [{"averages": True}, {"averages": True}]
