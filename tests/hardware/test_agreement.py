"""Two ranks, each trying for itself; nobody waits for one that fails."""

import pytest
import torch
from torch import nn

from rightbatch import hardware
from rightbatch._comm import Alone, Group
from rightbatch.errors import TaskError
from rightbatch.hardware.agreement import Agreed, least
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
        "TaskError: every rank must be able to take a step, got an error on rank 1"
    )
    assert second == "ZeroDivisionError: rank 1's own"


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
