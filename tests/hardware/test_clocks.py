"""Clocks, parts and workers. Oracle: closed form (a clock that only the chosen costs advance)."""

import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from rightbatch._time import wall_clock
from rightbatch.hardware.clocks import Loop, measure_workers
from rightbatch.hardware.processor import Processor
from rightbatch.hardware.workload import batches_in_process
from rightbatch.results import LoopClocks
from rightbatch.task import Task
from rightbatch.testing import FakeClock
from tests.hardware.tasks import task_with, timed_task


def loop_of(task: Task, clock: Callable[[], float], *, size: int = 8) -> Loop:
    stream = batches_in_process(task, size, seed=0)
    return Loop(
        task=task,
        batch_size=size,
        batch=next(stream),
        stream=stream,
        step_seconds=0.05,
        load_seconds=0.02,
        seed=0,
        clock=clock,
    )


@pytest.mark.parametrize("seconds", [0.1, 1.0, 100.0])
def test_in_one_process_the_loop_pays_both(seconds: float) -> None:
    clock = FakeClock()
    task = timed_task(clock, alpha=0.04, beta=0.001, load=0.002)
    clocks = loop_of(task, clock).measure_clocks(seconds)
    assert clocks.step_seconds == pytest.approx(0.048)
    assert clocks.load_seconds == pytest.approx(0.016)
    assert clocks.total_seconds == pytest.approx(0.064)
    assert (clocks.num_workers, clocks.overlap) == (0, 0.0)


def test_a_busy_spell_does_not_count() -> None:
    """Ten times slower for a part of the time: the other rounds tell."""
    clock = FakeClock()
    task = task_with(lambda size: clock.advance(0.05 * (10 if 0.3 < clock() % 3 < 1 else 1)))
    clocks = loop_of(task, clock).measure_clocks(20.0)
    assert clocks.step_seconds == pytest.approx(0.05)
    assert clocks.total_seconds == pytest.approx(0.05)


def test_the_time_for_the_clocks_is_kept() -> None:
    clock = FakeClock()
    task = timed_task(clock, alpha=0.05, beta=0.0, load=0.0025)
    loop = loop_of(task, clock)
    began = clock()
    loop.measure_clocks(2.0)
    assert 0.5 < clock() - began <= 2.5
    began = clock()
    loop.measure_clocks(0.0)  # one round, whatever it takes
    assert clock() - began == pytest.approx(loop.cost_seconds())


def test_time_in_line_is_taken_off_without_workers_and_belongs_to_the_loop_with_them() -> None:
    """A step runs 10 ms and stands in line for 30: for others, or for the task's own workers."""
    clock = FakeClock()
    for workers, seconds in ((0, 0.01), (2, 0.04)):
        task = task_with(lambda size: clock.advance(0.04), num_workers=workers)
        loop = replace(
            loop_of(task, clock),
            processor=Processor(lambda: (0.0, 0.0), own_line=lambda: 0.75 * clock()),
        )
        assert loop._time_steps(3) == pytest.approx(seconds)


def test_workers_deliver_together_and_are_timed_together() -> None:
    """Two at a time: 0.4 and 0.2 s for both, whose low quantile is 0.24, half of that each."""
    clock, seconds = FakeClock(), iter([0.3, 0.1, 0.1, 0.1])
    task = task_with(lambda size: None, num_workers=2)
    each = loop_of(task, clock)._time(lambda: clock.advance(next(seconds)), 4, 2)
    assert each == pytest.approx(0.12)


@pytest.mark.parametrize(
    ("total", "overlap"), [(0.3, 1.0), (0.35, 0.5), (0.4, 0.0), (0.5, 0.0), (0.2, 1.0)]
)
def test_overlap_is_what_the_loop_does_not_pay_of_the_shorter(total: float, overlap: float) -> None:
    task = task_with(lambda size: None, num_workers=2)
    found = loop_of(task, FakeClock())._overlap(0.1, 0.3, total)
    assert found == pytest.approx(overlap)
    assert loop_of(task, FakeClock())._overlap(0.0, 0.3, 0.3) == 1.0
    alone = task_with(lambda size: None)
    assert loop_of(alone, FakeClock())._overlap(0.1, 0.3, total) == 0.0


# The parts of a step.


class Costly(nn.Module):
    """A parameter whose gradient takes a while, on a fake clock."""

    def __init__(self, clock: FakeClock, seconds: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.ones(()))
        self._clock, self._seconds = clock, seconds

    def forward(self, inputs: Tensor) -> Tensor:
        product = self.theta * inputs
        if product.requires_grad:
            product.register_hook(lambda _: self._clock.advance(self._seconds))
        return product.square().mean()


def test_the_parts_of_a_step_are_told_apart() -> None:
    clock = FakeClock()
    task = task_with(lambda size: clock.advance(0.05), model=Costly(clock, 0.12))
    task.optimizer.register_step_pre_hook(lambda *_: clock.advance(0.03))
    shares = loop_of(task, clock).measure_shares(10.0)
    assert shares is not None
    assert shares.batch_size == 8
    assert (shares.forward, shares.backward, shares.optimizer) == pytest.approx((0.25, 0.6, 0.15))


def test_the_parts_make_the_same_step_as_the_task() -> None:
    """Clipping included: the same weights, bit for bit."""
    torch.manual_seed(0)
    ends = []
    for parts in (True, False):
        model = nn.Linear(3, 1)
        nn.init.ones_(model.weight)
        nn.init.zeros_(model.bias)
        task = Task(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
            torch.linspace(-1, 3, 48).reshape(16, 3),
            lambda model, batch: model(batch).square().mean(),
            clip_grad_norm=0.5,
        )
        loop = loop_of(task, FakeClock())
        for _ in range(3):
            if parts:
                loop._parts()
            else:
                task.step(loop.batch)
        ends.append(model.weight.detach().clone())
    assert torch.equal(*ends)


def test_parts_that_time_does_not_allow_are_not_measured() -> None:
    loop = loop_of(task_with(lambda size: None), FakeClock())
    assert loop.measure_shares(0.049) is None  # a step is said to take 0.05 s
    assert loop.measure_shares(0.051) is None  # on a clock that stands still


# Workers.


class Sleepy(Dataset[Tensor]):
    """Two milliseconds an example, as from a slow disk."""

    def __len__(self) -> int:
        return 256

    def __getitem__(self, index: int) -> Tensor:
        time.sleep(0.002)
        return torch.tensor(float(index))


def known(load_seconds: float, step_seconds: float) -> LoopClocks:
    return LoopClocks(
        batch_size=8,
        num_workers=0,
        load_seconds=load_seconds,
        step_seconds=step_seconds,
        total_seconds=load_seconds + step_seconds,
        overlap=0.0,
    )


def test_more_workers_are_tried_while_they_gain() -> None:
    task = task_with(lambda size: None, dataset=Sleepy())
    points = measure_workers(loop_of(task, wall_clock), known(0.02, 1e-9), seconds=60.0)
    counts = [point.num_workers for point in points]
    assert counts[:2] == [0, 2]  # one alone is no faster than loading here
    assert counts == sorted(set(counts))
    assert points[0].load_seconds == 0.02  # the loop's own
    assert all(point.load_seconds > 0 for point in points)


def test_workers_that_hide_loading_are_enough() -> None:
    task = task_with(lambda size: None, dataset=Sleepy())
    points = measure_workers(loop_of(task, wall_clock), known(99.0, 100.0), seconds=60.0)
    assert [point.num_workers for point in points] == [0, 1]


def test_no_worker_is_started_without_the_time_for_it() -> None:
    task = task_with(lambda size: None, dataset=Sleepy())
    assert measure_workers(loop_of(task, wall_clock), known(1.0, 0.1), seconds=0.01) == ()


def test_no_worker_is_started_beside_a_clock_that_it_cannot_see() -> None:
    task = task_with(lambda size: None, dataset=Sleepy())
    assert measure_workers(loop_of(task, FakeClock()), known(1.0, 0.1), seconds=60.0) == ()


class OnlyHere(Dataset[Tensor]):
    """Refuses worker processes."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> Tensor:
        if torch.utils.data.get_worker_info() is not None:
            raise RuntimeError("one process only")
        time.sleep(0.001)
        return torch.tensor(float(index))


def test_a_data_set_that_refuses_workers_is_measured_without_them() -> None:
    task = task_with(lambda size: None, dataset=OnlyHere(), batch_size=8)
    loop = loop_of(task, wall_clock)
    assert measure_workers(loop, known(1.0, 0.1), seconds=60.0) == ()
