"""Oracle: each contender alone. Taking turns must not change one bit of anybody's run."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import IterableDataset

from rightbatch._time import Deadline
from rightbatch.lr.arena import Arena, Run
from rightbatch.lr.course import Course, lay_out
from rightbatch.lr.judging import Mark
from rightbatch.lr.snapshot import put_back, take_snapshot
from rightbatch.task import Task, supervised
from tests.lr.doubles import Bowl, LoggingSGD, TickingClock, bowl, numbers
from tests.zoo import WORKING, Specimen, rows

# Its forward depends on plain attributes of modules, which contenders share.
TAKES_TURNS = [specimen for specimen in WORKING if specimen.name != "remembering"]


def arena(task: Task, *, clock: TickingClock | None = None, seconds: float = 1e9) -> Arena:
    course = lay_out(task, size=task.default_batch_size, affordable_chunks=4, seed=0)
    weights = tuple(task.weigh(batch) for batch in course.held_out)
    return Arena(task, course, Deadline(seconds, clock or TickingClock()), 0, weights)


def tracks(task: Task, rates: tuple[float, ...], *, together: bool) -> list[list[Mark]]:
    with task.preserved():
        place = arena(task)
        runs = [place.enter(rate) for rate in rates]
        for group in [runs] if together else [[run] for run in runs]:
            place.run(group, 5)
            place.run(group, 11)
        return [run.track for run in runs]


@pytest.mark.parametrize("specimen", TAKES_TURNS, ids=str)
def test_taking_turns_is_the_same_as_running_alone(specimen: Specimen) -> None:
    task = specimen.make()
    rate = float(task.optimizer.param_groups[0]["lr"])
    rates = (0.3 * rate, rate, 2 * rate)
    together, alone = (tracks(task, rates, together=flag) for flag in (True, False))
    assert together == alone
    assert [mark.step for mark in together[0]] == [0, 4, 5, 6, 8, 11]
    assert together[0] != together[1]


def test_a_run_is_plain_training_on_the_course() -> None:
    """Plain loop, plain optimizer, same batches: the same held-out losses."""
    model = nn.Linear(3, 1)
    task = Task(
        model, torch.optim.Adam(model.parameters(), lr=0.1), rows(), supervised(F.mse_loss),
        batch_size=4,
    )  # fmt: skip
    start = {name: value.clone() for name, value in model.state_dict().items()}
    place = arena(task)
    run = place.enter(0.03)
    place.run([run], 8)

    model.load_state_dict(start)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    stream = place.course.stream(0)
    for _ in range(8):
        inputs, targets = next(stream)
        optimizer.zero_grad()
        F.mse_loss(model(inputs), targets).backward()
        optimizer.step()
    expected = [F.mse_loss(model(x), y).item() for x, y in place.course.held_out]
    assert run.track[-1].losses == pytest.approx(expected, rel=1e-12)


def test_a_late_entrant_sees_what_the_others_saw() -> None:
    seen: dict[float, list[tuple[float, ...]]] = {}
    model, batch_now = Bowl([1.0]), [()]

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        batch_now[0] = tuple(batch.flatten().tolist())
        return model.weight.square().sum()  # type: ignore[operator]

    optimizer = LoggingSGD(model.parameters(), lr=0.01)
    optimizer.on_step = lambda rates: seen.setdefault(rates[0], []).append(batch_now[0])
    task = Task(model, optimizer, numbers(100), loss, batch_size=4)
    place = arena(task)
    place.run([place.enter(0.1), place.enter(0.2)], 40)
    place.run([place.enter(0.3)], 40)
    place.run([place.enter(0.4, lap=1)], 40)
    assert len(seen[0.1]) == 40
    assert seen[0.1] == seen[0.2] == seen[0.3]
    assert seen[0.4] != seen[0.1]
    held_out = {x for batch in place.course.held_out for x in batch.flatten().tolist()}
    trained = {x for batches in seen.values() for batch in batches for x in batch}
    assert held_out | trained == set(range(100))  # two epochs and more: every other example
    assert not held_out & trained


def test_dropout_differs_between_steps_but_not_between_contenders() -> None:
    drawn: dict[float, list[float]] = {0.0: [], 0.1: [], 0.2: []}
    notes = {rate: seen.append for rate, seen in drawn.items()}  # the lists would be put back
    model, rate_now = Bowl([1.0]), [0.0]

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        notes[rate_now[0]](torch.rand(()).item())
        return model.weight.square().sum()  # type: ignore[operator]

    optimizer = LoggingSGD(model.parameters(), lr=0.01)
    task = Task(model, optimizer, numbers(100), loss, batch_size=4)
    place = arena(task)
    for rate in (0.1, 0.2):
        rate_now[0] = rate
        place.run([place.enter(rate)], 4)
    marks = len(place.course.held_out)
    assert drawn[0.1] == drawn[0.2]
    assert len({*drawn[0.1]}) == len(drawn[0.1]) == 4 + marks


def test_diverged_runs_stop_and_the_others_go_on() -> None:
    place = arena(bowl(1.0))
    runs = [place.enter(rate) for rate in (0.5, 2.5, 1e200)]
    place.run(runs, 23)
    assert [run.alive for run in runs] == [True, False, False]
    assert runs[0].step == 23
    assert runs[1].step < 8  # 1.5^2 per step: beyond four times the start at the first mark
    assert all(math.isfinite(loss) for run in runs for mark in run.track for loss in mark.losses)


def test_a_held_out_loss_that_is_nan_is_divergence_too() -> None:
    """|1 - 2.15|^4 is the first power above 1.6, and no training step sees it any more."""
    model = Bowl([1.0])

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        weight: Tensor = model.weight  # type: ignore[assignment]
        root = (1.6 - weight.abs()).sqrt()
        return 0.5 * weight.square().sum() + 0 * root.detach().sum()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    place = arena(Task(model, optimizer, numbers(40), loss, batch_size=4))
    run = place.enter(2.15)
    place.run([run], 4)
    assert not run.alive
    assert [mark.step for mark in run.track] == [0]


def test_nobody_waits_for_runs_that_are_all_diverged() -> None:
    clock = TickingClock()
    place = arena(bowl(1.0, clock=clock), clock=clock)
    place.run([place.enter(1e200), place.enter(1e201)], 10_000)
    assert clock.calls < 40


@pytest.mark.parametrize("seconds", [0.05, 0.3, 1.0, 7.0])
def test_runs_end_level_when_the_time_ends(seconds: float) -> None:
    clock = TickingClock(0.01)
    place = arena(bowl(1.0, clock=clock), clock=clock, seconds=seconds)
    runs: list[Run] = [place.enter(rate) for rate in (0.1, 0.2, 0.3)]
    place.run(runs, 10_000)
    assert len({run.step for run in runs}) == 1
    assert runs[0].track[-1].step == runs[0].step
    marking = 3 * len(place.course.held_out) * 0.01
    assert clock.now <= seconds + max(0.12, 0.04 * seconds) + 2 * marking


def test_only_one_contender_is_on_the_device_and_retired_ones_are_nowhere() -> None:
    place = arena(bowl(1.0))
    runs = [place.enter(rate) for rate in (0.1, 0.2, 0.3)]
    place.run(runs, 8)
    assert sum(run.snapshot is None for run in runs) == 1
    place.retire(runs)
    assert all(run.snapshot is None for run in runs)


class Streamed(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(numbers(400))


def held_out_and_first(task: Task, size: int) -> tuple[set[float], set[float]]:
    course = lay_out(task, size=size, affordable_chunks=8, seed=3)
    stream = course.stream(0)
    first = {x for _ in range(10) for x in next(stream).flatten().tolist()}
    return {x for batch in course.held_out for x in batch.flatten().tolist()}, first


def counting_task(dataset: Any) -> Task:
    model = Bowl([1.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Task(model, optimizer, dataset, lambda m, b: m.weight.square().sum(), batch_size=1)


@pytest.mark.parametrize("size", [1, 3, 16])
def test_a_stream_gives_its_first_examples_and_trains_on_the_next(size: int) -> None:
    held_out, first = held_out_and_first(counting_task(Streamed()), size)
    assert len(held_out) >= 8
    assert held_out == set(range(len(held_out)))
    assert not held_out & first


def test_where_the_rest_would_not_fill_a_batch_nothing_is_held_out() -> None:
    held_out, trained = held_out_and_first(counting_task(numbers(40)), 40)
    assert trained == set(range(40))
    assert held_out <= trained


@pytest.mark.parametrize(("examples", "size"), [(2, 1), (2, 2), (11, 4), (80, 64), (5000, 64)])
def test_held_out_batches_are_several_equal_and_no_larger_than_training_ones(
    examples: int, size: int
) -> None:
    course: Course = lay_out(
        counting_task(numbers(examples)), size=size, affordable_chunks=1000, seed=0
    )
    sizes = {len(batch) for batch in course.held_out}
    assert len(course.held_out) >= 4
    assert len(sizes) == 1
    assert min(2, size) <= sizes.pop() <= size
    assert sum(map(len, course.held_out)) <= max(8, min(2048, examples))


def test_a_snapshot_brings_back_state_groups_buffers_and_their_absence() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    task = Task(model, optimizer, rows(), supervised(F.mse_loss), batch_size=4)
    batches = task.batches(4)
    fresh = take_snapshot(task)
    losses = [task.step(next(batches)).item() for _ in range(3)]
    later = take_snapshot(task)
    optimizer.param_groups[0]["lr"] = 5.0
    optimizer.param_groups[0]["stray"] = 1
    model.register_buffer("late", torch.ones(1))
    put_back(task, fresh)
    assert not optimizer.state
    assert all(parameter.grad is None for parameter in model.parameters())
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert "stray" not in optimizer.param_groups[0]
    assert not hasattr(model, "late")
    batches = task.batches(4)
    assert [task.step(next(batches)).item() for _ in range(3)] == losses
    after = take_snapshot(task)
    for a, b in zip(after.parameters, later.parameters, strict=True):
        assert torch.equal(a, b)


def test_a_snapshot_reuses_the_memory_that_is_there() -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.Adam(model.parameters())
    task = Task(model, optimizer, rows(), supervised(F.mse_loss), batch_size=4)
    task.step(next(task.batches(4)))
    state = optimizer.state[model.weight]["exp_avg"]
    kept = take_snapshot(task)
    weight = model.weight.data_ptr()
    task.step(next(task.batches(4)))
    put_back(task, kept)
    assert model.weight.data_ptr() == weight
    assert optimizer.state[model.weight]["exp_avg"] is state
