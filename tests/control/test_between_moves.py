"""What a step between two moves leaves undone. Oracle: asking at every example."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rightbatch import BatchSizeSampler, BatchSizeSchedule
from rightbatch.batches import Decision
from rightbatch.control.evidence import Agreed
from tests.batches.loaders import Ahead
from tests.control.doubles import FakeMonitor, controlled


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(1, 5))
def test_a_table_says_the_same_until_the_next_entry(sizes: list[int], apart: int) -> None:
    schedule = BatchSizeSchedule.table({apart * index: size for index, size in enumerate(sizes)})
    last_entry = apart * (len(sizes) - 1)
    for seen in range(last_entry):
        until = schedule.unchanged_until(seen)
        assert until == (seen // apart + 1) * apart
        for later in range(seen, int(until)):
            assert schedule.size_at(later) == schedule.size_at(seen)
    assert schedule.unchanged_until(last_entry) == math.inf


def test_no_noise_moves_a_size_before_it_has_dwelt() -> None:
    schedule = BatchSizeSchedule.noise(8, max_batch_size=64, dwell_examples=100)
    loud = Agreed(1000.0, 900.0, None)
    moved_at = []
    for seen in range(0, 400, 8):
        until = schedule.unchanged_until(seen)
        before = schedule.size_at(seen).batch_size
        if schedule.size_at(seen, loud).batch_size != before:
            moved_at.append(seen)
            assert seen >= until
    assert moved_at == [104, 208, 312]


def counted(schedule: BatchSizeSchedule) -> list[float]:
    """Note each count at which a schedule is asked from now on."""
    asked: list[float] = []
    size_at = schedule.size_at

    def noting(examples_seen: float, noise: Any = None) -> Decision:
        asked.append(examples_seen)
        return size_at(examples_seen, noise)

    schedule.size_at = noting
    return asked


def test_a_table_is_asked_where_it_changes() -> None:
    schedule = BatchSizeSchedule.parse("0:8 80:16 400:8")
    controller = controlled(schedule)
    asked = counted(schedule)
    while controller.examples_seen < 800:
        controller.step(controller.batch_size)
    assert asked == [8, 80, 400]
    assert [move.examples_seen for move in controller.moves] == [80, 400]


def test_a_monitor_is_asked_when_a_move_is_possible_and_it_has_news() -> None:
    schedule = BatchSizeSchedule.noise(8, max_batch_size=64, dwell_examples=80)
    monitor = FakeMonitor()
    controller = controlled(schedule, monitor=monitor)
    asked = counted(schedule)
    for _ in range(9):
        monitor.measures(8.0)  # at every step: none of them counts yet
        controller.step(8)
    assert monitor.asked == 1
    for _ in range(5):
        controller.step(8)
    monitor.measures(9.0)
    controller.step(8)
    controller.step(8)
    assert asked == [8, 80, 120]
    assert monitor.asked == 3


def test_one_measurement_moves_as_often_as_it_asks_for() -> None:
    schedule = BatchSizeSchedule.noise(8, max_batch_size=64, dwell_examples=0)
    monitor = FakeMonitor()
    controller = controlled(schedule, monitor=monitor)
    monitor.measures(32.0)
    for _ in range(4):
        controller.step(controller.batch_size)
    assert [move.to_batch_size for move in controller.moves] == [16, 32]


@pytest.mark.parametrize(("most", "is_itself"), [(None, True), (8, True), (4, False)])
def test_a_batch_that_fits_is_not_cut(most: int | None, is_itself: bool) -> None:
    sampler = BatchSizeSampler(20, 8)
    schedule = BatchSizeSchedule.parse("0:8")
    controller = controlled(schedule, sampler=sampler, max_micro_batch_size=most)
    for batch in sampler.follow(Ahead(sampler, 0)):
        parts = list(controller.micro_batches(batch))
        assert (parts[0][0] is batch) == (is_itself or len(batch) <= 4)
        assert sum(weight for _, weight in parts) == pytest.approx(1, rel=1e-15)
        assert torch.equal(torch.cat([part for part, _ in parts]), batch)
        controller.step()
