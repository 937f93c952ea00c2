"""Data-parallel wrappers: taken off or kept quiet, and missed by nobody. Oracle: the bare model."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed import HashStore

from rightbatch._comm import gradients_apart
from rightbatch.hardware import measure_memory
from rightbatch.hardware.ranks import OneRank, without_ranks
from rightbatch.hardware.workload import held_bytes
from rightbatch.task import Task

MIB = 2**20
BYTES = 4 * 6  # of a layer from 5 to 1
pytestmark = pytest.mark.usefixtures("float32", "group")


@pytest.fixture
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Halved(nn.Module):
    """A wrapper around a part, and a layer that every rank has for itself."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.shared = nn.parallel.DistributedDataParallel(nn.Linear(5, 1), **options)
        self.own = nn.Linear(1, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.own(self.shared(inputs))


def mean(model, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


def task_of(model: nn.Module, loss=mean) -> Task:
    return Task(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.ones(100, 5), loss)


def like_a_wrapper(model, batch: Tensor) -> Tensor:
    """What loops that run on ranks ask of the model."""
    with model.no_sync():
        weight = model.module.weight.square().sum()
    return model(batch).square().mean() + weight * (1 + model.require_backward_grad_sync)


@pytest.mark.slow
@pytest.mark.parametrize("isolate", [True, False])
def test_a_loss_that_knows_of_the_wrapper_is_measured(isolate):
    task = task_of(nn.parallel.DistributedDataParallel(nn.Linear(5, 1)), like_a_wrapper)
    profile = measure_memory(task, budget_bytes=64 * MIB, isolate=isolate)
    assert profile.max_verified_batch_size == 100
    assert not any("Tried in this process" in note for note in profile.notes)


def test_one_rank_computes_what_the_wrapped_model_does():
    wrapped = nn.parallel.DistributedDataParallel(nn.Linear(5, 1))
    task, copied = without_ranks(task_of(wrapped))
    inputs = torch.randn(3, 5)
    assert isinstance(task.model, OneRank)
    assert torch.equal(task.model(inputs), wrapped.module(inputs))
    assert (held_bytes(task), copied) == (BYTES, BYTES)


@pytest.mark.parametrize(("view", "copied"), [(False, BYTES), (True, 0)])
def test_the_copy_of_the_gradients_of_a_part_counts(view, copied):
    task = task_of(Halved(gradient_as_bucket_view=view))
    assert without_ranks(task) == (task, copied)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_a_wrapper_around_a_part_is_tried_here_and_sends_nothing(compiled):
    torch._dynamo.reset()
    part = Halved()
    synchronized = []

    def loss(model, batch):
        synchronized.append(part.shared.require_backward_grad_sync)
        return mean(model, batch)

    # The compiler looks into a wrapper, not around the part of a model that has one.
    wrapped = torch.compile(part.shared, backend="eager") if compiled else part
    task = task_of(wrapped, loss)
    task.check()
    synchronized.clear()
    profile = measure_memory(task, budget_bytes=64 * MIB)
    assert profile.max_verified_batch_size == 100
    assert any("got a DistributedDataParallel as a part" in note for note in profile.notes)
    assert synchronized
    assert not any(synchronized)
    assert part.shared.require_backward_grad_sync


def test_apart_no_buffers_are_sent_either():
    part = Halved().shared
    for before in (True, False):
        part.require_forward_param_sync = before
        with gradients_apart(part):
            assert not part.require_forward_param_sync
        assert part.require_forward_param_sync == before
