"""Compiled tasks: measured as they train, and compiled still when it is over.

Oracle: a backend that counts the calls of what it has compiled.
"""

from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rightbatch.hardware import fake, measure_memory
from rightbatch.hardware.compiled import compile_ahead, is_compiled
from rightbatch.hardware.fake import CannotPredict, fakes_of
from rightbatch.hardware.isolation import CannotIsolate, Isolated
from rightbatch.hardware.workload import batches_in_process
from rightbatch.task import Task

pytestmark = pytest.mark.usefixtures("float32", "fresh_compiler")
MIB = 2**20
CALLS = []


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def counting(graph, inputs):
    """Compile nothing, and note every call."""

    def run(*args):
        CALLS.append(len(args))
        return graph(*args)

    return run


class Compiler:  # a class, since what functions refer to is held by the task
    blocks: ClassVar[list[Tensor]] = []


def lasting(graph, inputs):
    """Take 100 MiB for every graph, as a compiler does."""
    Compiler.blocks.append(torch.ones(100 * MIB // 4))
    return graph


def mean(model, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


def task_of(model: nn.Module, loss=mean, **options) -> Task:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Task(model, optimizer, torch.ones(100, 5), loss, **options)


def calls_of(task: Task) -> int:
    """Calls of compiled code in one step."""
    before = len(CALLS)
    task.step(torch.ones(7, 5))
    return len(CALLS) - before


def compiled_in_place(*, whole: bool) -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 5), nn.ReLU())
    (model if whole else model[0]).compile(backend=counting)
    return model


squared = torch.compile(torch.square, backend=counting)


class Criterion:
    def __init__(self):
        self.inner = torch.compile(self.raw, backend=counting)

    def raw(self, outputs):
        return outputs.mean()

    def __call__(self, model, batch):
        return self.inner(model(batch))


class Decorated(nn.Linear):
    @torch.compile(backend=counting)
    def forward(self, inputs):
        return super().forward(inputs)


def with_compiled_optimizer() -> Task:
    task = task_of(nn.Linear(5, 5))
    task.optimizer.step = torch.compile(task.optimizer.step, backend=counting)
    return task


@pytest.mark.parametrize(
    "make",
    [
        lambda: task_of(torch.compile(nn.Linear(5, 5), backend=counting)),
        lambda: task_of(compiled_in_place(whole=True)),
        lambda: task_of(compiled_in_place(whole=False)),
        lambda: task_of(nn.Linear(5, 5), lambda model, batch: squared(model(batch)).mean()),
        lambda: task_of(nn.Linear(5, 5), Criterion()),
        lambda: task_of(Decorated(5, 5)),
        with_compiled_optimizer,
    ],
    ids=["model", "in place", "a part", "function", "criterion", "forward", "optimizer"],
)
def test_compiled_code_is_found_wherever_it_is(make):
    task = make()
    assert is_compiled(task)
    with (
        pytest.raises(CannotPredict, match="got compiled code"),
        fakes_of(task, lambda size: torch.ones(size, 5)),
    ):
        pass


@torch.compiler.disable
def never(outputs):
    return outputs.square().mean()


@pytest.mark.parametrize(
    "loss",
    [
        mean,
        lambda model, batch: checkpoint(model, batch, use_reentrant=False).mean(),
        lambda model, batch: never(model(batch)),
    ],
    ids=["plain", "checkpoint", "never"],
)
def test_code_that_is_not_compiled_is_not_called_so(loss):
    task = task_of(nn.Linear(5, 5), loss)
    task.step(torch.ones(3, 5))  # some of torch wraps itself when it is called
    assert not is_compiled(task)


@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_prediction_compiles_nothing_and_switches_nothing_off(monkeypatch, fullgraph):
    """Compiled code that nobody finds, in an extension of C for instance, is met all the same."""
    monkeypatch.setattr(fake, "is_compiled", lambda task: False)
    task = task_of(torch.compile(nn.Linear(5, 5), backend=counting, fullgraph=fullgraph))
    with fakes_of(task, lambda size: torch.ones(size, 5)) as fakes:
        assert fakes.peak_bytes(64) > 0
    assert calls_of(task) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("isolate", "fullgraph", "trained"),
    [(True, True, True), (False, True, True), (False, False, False)],
)
def test_a_compiled_model_is_measured_as_it_trains_and_trains_on(isolate, fullgraph, trained):
    model = torch.compile(nn.Linear(5, 5), backend=counting, fullgraph=fullgraph)
    task = task_of(model, batch_size=100)
    if trained:
        assert calls_of(task) == 1
    before = len(CALLS)
    profile = measure_memory(task, budget_bytes=64 * MIB, isolate=isolate)
    assert profile.max_verified_batch_size == 100
    assert {point.source for point in profile.points} == {"real"}
    assert (len(CALLS) >= before + 5) != isolate  # compiled where it was tried
    assert not any("Tried in this process" in note for note in profile.notes)
    assert calls_of(task) == 1


@pytest.mark.slow
@pytest.mark.parametrize("isolate", [True, False])
def test_the_compilers_own_memory_is_charged_to_no_batch(isolate):
    task = task_of(torch.compile(nn.Linear(5, 5), backend=lasting), batch_size=100)
    profile = measure_memory(task, budget_bytes=64 * MIB, isolate=isolate)
    Compiler.blocks.clear()
    assert profile.max_verified_batch_size == 100


def test_compiling_ahead_leaves_no_state_where_there_was_none():
    task = task_of(torch.compile(nn.Linear(5, 5), backend=counting), max_batch_size=2)
    sizes = []

    def batches_of(size):
        sizes.append(size)
        return batches_in_process(task, size, seed=0)

    compile_ahead(task, batches_of)
    assert sizes == [2, 2]
    assert not task.optimizer.state
    assert all(parameter.grad is None for parameter in task.model.parameters())
    calls_of(task)
    compile_ahead(task, batches_of)
    assert task.optimizer.state


def test_what_would_arrive_uncompiled_is_not_sent():
    with pytest.raises(CannotIsolate, match="compiled in place"):
        Isolated(task_of(compiled_in_place(whole=False)))
