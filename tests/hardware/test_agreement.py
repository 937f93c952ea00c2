"""Two ranks, each trying for itself; nobody waits for one that fails."""

import pytest
import torch
from torch import nn

from rightbatch import hardware
from rightbatch._comm import Alone, Group
from rightbatch.errors import TaskError
from rightbatch.hardware import memory
from rightbatch.hardware.agreement import Agreed, least, on_all_or_none
from rightbatch.hardware.child import Answer
from rightbatch.hardware.isolation import CannotIsolate
from rightbatch.hardware.search import ProbeOutcome
from rightbatch.task import Task
from tests.ranks import on_two_ranks


def test_alone_there_is_nobody_to_agree_with():
    assert least(Alone(), 5) == 5
    assert Agreed(Alone(), lambda size: ProbeOutcome("ok", size))(3) == ProbeOutcome("ok", 3)


def worst_of(rank, mine, other):
    outcome = (mine, other)[rank]
    found = Agreed(Group(), lambda size: ProbeOutcome(outcome, 100 + rank))(8)
    return [found.outcome, found.peak_bytes, least(Group(), 10 - rank)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mine", "other", "agreed"),
    [("ok", "ok", "ok"), ("ok", "oom", "oom"), ("killed", "slow", "killed")],
)
def test_the_worst_outcome_and_the_largest_peak_count(mine, other, agreed):
    assert on_two_ranks(worst_of, mine, other) == [[agreed, 101, 9]] * 2


def in_pairs(rank, isolate, bytes_per_example):
    """Search on two ranks that differ, with what a try takes made up; tell what each tried."""
    tried = []

    class Counted:
        def __init__(self, task, *args, **options):
            if rank == 1 and not bytes_per_example[1]:
                raise CannotIsolate("an open file")

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def try_size(self, size, *, budget_bytes, **options):
            tried.append(size)
            peak = size * 8 * bytes_per_example[rank]
            return Answer(outcome="ok" if peak <= budget_bytes else "oom", peak_bytes=peak)

    memory.Isolated = Counted  # pyright: ignore
    width = bytes_per_example[rank] or 10

    def loss(model, batch):
        out = model(batch)
        return out[out.isfinite()].mean() if width == 13 else out.mean()

    model = nn.Linear(width, 1)
    task = Task(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        torch.ones(3000 - 100 * rank, width),
        loss,
    )
    budget = 100_000 if all(bytes_per_example) and isolate else 2**30
    profile = hardware.measure_memory(task, budget_bytes=budget, isolate=isolate)
    points = [p.batch_size for p in profile.points if p.source == "real"]
    return [profile.max_verified_batch_size, profile.upper_bound, points, tried]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("isolate", "bytes_per_example"),
    [
        (True, (10, 14)),  # both predict, and each something else
        (True, (10, 13)),  # the second cannot predict
        (True, (10, 0)),  # the second cannot be sent elsewhere
        (False, (10, 14)),
    ],
)
def test_ranks_that_differ_try_the_same_sizes(isolate, bytes_per_example):
    first, second = on_two_ranks(in_pairs, isolate, bytes_per_example)
    assert first == second
    size, bound, points, tried = first
    assert size in points
    assert tried in ([], points)
    assert bound is None or size <= bound
    assert size <= 2900  # examples of the smaller shard


def failing_on_one(rank):
    def probe(size):
        if rank == 1:
            raise ZeroDivisionError("rank 1's own")
        return ProbeOutcome("ok", 1)

    try:
        Agreed(Group(), probe)(8)
    except (ZeroDivisionError, TaskError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


@pytest.mark.slow
def test_an_error_on_one_rank_ends_all():
    first, second = on_two_ranks(failing_on_one)
    assert first.startswith(
        "TaskError: every rank must be able to take a step at batch size 8, got an error on rank 1"
    )
    assert second == "ZeroDivisionError: rank 1's own"


def together(rank, errors):
    def act():
        if errors[rank]:
            raise {"way": CannotIsolate, "task": ZeroDivisionError}[errors[rank]]("own")
        return 5 + rank

    try:
        return on_all_or_none(Group(), act, "go", kind=CannotIsolate)
    except (ZeroDivisionError, TaskError) as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        (["", ""], [5, 6]),
        (["", "way"], ["CannotIsolate: every rank must be able to go, got", "CannotIsolate: own"]),
        (["task", "way"], ["ZeroDivisionError: own", "TaskError: every rank must be able to go"]),
    ],
    ids=str,
)
def test_where_one_rank_fails_all_take_the_same_way(errors, expected):
    for got, wanted in zip(on_two_ranks(together, errors), expected, strict=True):
        assert str(got).startswith(str(wanted))


def largest_under_ddp(rank):
    torch.manual_seed(0)
    model = nn.Linear(200, 1)
    wrapped = nn.parallel.DistributedDataParallel(model)
    data = torch.ones(3000, 200)
    task = Task(
        wrapped,
        torch.optim.SGD(wrapped.parameters(), lr=0.1),
        data,
        lambda model, batch: model(batch).mean(),
    )
    # Rank 1 has less memory: what fits there counts.
    budget = (400 - 300 * rank) * 2**20
    profile = hardware.measure_memory(task, budget_bytes=budget)
    copy = sum(p.nbytes for p in wrapped.parameters())
    return [profile.budget_bytes, profile.max_verified_batch_size, profile.held_bytes, copy]


@pytest.mark.slow
def test_every_rank_of_a_wrapped_model_gets_the_same_answer():
    first, second = on_two_ranks(largest_under_ddp)
    assert first == second
    budget, size, held, copy = first
    assert (budget, size) == (100 * 2**20, 3000)
    assert held == 2 * copy  # the weights, and the gradients that the wrapper keeps


def crowded_on(ranks, rank):
    """Measure where some ranks have no room for a second copy of the task, as a try tells."""

    def try_size(self, size, *, budget_bytes, **options):
        if rank in ranks:
            raise CannotIsolate("no room for a second one")
        return Answer(outcome="ok", peak_bytes=1000)

    memory.Isolated.try_size = try_size  # pyright: ignore
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    task = Task(model, optimizer, torch.ones(40, 3), lambda model, x: model(x).mean())
    profile = hardware.measure_memory(task, budget_bytes=2**30)
    return [profile.max_verified_batch_size, any("in this process" in n for n in profile.notes)]


def crowded_on_the_second(rank):
    return crowded_on([1], rank)


def test_without_room_for_a_second_copy_sizes_are_tried_in_this_process(monkeypatch):
    monkeypatch.setattr(memory.Isolated, "try_size", memory.Isolated.try_size)  # put back after
    assert crowded_on([0], 0) == [40, True]


@pytest.mark.slow
def test_without_room_for_a_second_copy_on_one_rank_all_try_in_their_own_process():
    assert on_two_ranks(crowded_on_the_second) == [[40, True]] * 2
