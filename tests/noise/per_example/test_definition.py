"""Squares of a task's single examples. Oracle: the loop over batches of one, on the task zoo."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rightbatch.errors import MixesExamples, TaskError
from rightbatch.noise.per_example import definition, per_example_grad_sq
from rightbatch.task import Task, supervised
from tests.laws import assert_world_unchanged
from tests.zoo import WORKING, Specimen

SIZE = 4


def loop(task: Task, batch: object) -> Tensor:
    squares = []
    for index in range(SIZE):
        loss, _ = task.loss(definition.one_example(batch, index))
        gradients = torch.autograd.grad(loss, task.parameters, allow_unused=True)
        squares.append(sum(g.to_dense().square().sum() for g in gradients if g is not None))
    return torch.stack(squares)


# Dropout draws other masks for one example than for four; batches of one of a stateful model see
# another state.
DRAWN = {"dropout", "remembering", "spectral_norm"}


@pytest.mark.parametrize("specimen", WORKING, ids=str)
def test_equals_the_loop_or_is_refused_by_name(specimen: Specimen) -> None:
    torch.manual_seed(0)
    task = specimen.make()
    size = min(SIZE, task.max_batch_size or SIZE)
    batch = next(task.batches(size))
    if specimen.mixes_examples:
        with pytest.raises(MixesExamples, match="BatchNorm in train mode"):
            per_example_grad_sq(task, batch)
        return
    found = per_example_grad_sq(task, batch, examples=min(3, size))
    assert found.isfinite().all()
    if specimen.mean_loss and specimen.name not in DRAWN and size == SIZE:
        with task.preserved(weights=False):
            wanted = loop(task, batch)[:3]
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("name", ["tied_weights", "recurrent", "spectral_norm", "remembering"])
def test_the_world_is_unchanged(name: str) -> None:
    task = next(s for s in WORKING if s.name == name).make()
    batch = next(task.batches(SIZE))

    def measure() -> None:
        per_example_grad_sq(task, batch)
        per_example_grad_sq(task, batch, examples=2)

    assert_world_unchanged(task, measure)


def linear_task(**options: object) -> Task:
    model = nn.Linear(3, 1)
    data = [(torch.randn(3), torch.randn(1)) for _ in range(6)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Task(model, optimizer, data, supervised(F.mse_loss), **options)


def test_units_must_add_up() -> None:
    task = linear_task(weight=lambda batch: 1.0)
    with pytest.raises(TaskError, match=r"got 1\.0 for the batch and 4\.0 for its 4 examples"):
        per_example_grad_sq(task, next(task.batches(4)))


@pytest.mark.parametrize("examples", [0, 5])
def test_examples_must_be_in_the_batch(examples: int) -> None:
    task = linear_task()
    with pytest.raises(ValueError, match=f"the batch's 4, got examples={examples}"):
        per_example_grad_sq(task, next(task.batches(4)), examples=examples)


def test_a_batch_without_examples_is_refused() -> None:
    with pytest.raises(TaskError, match="got str without any"):
        per_example_grad_sq(linear_task(), "nothing")


def test_ragged_token_weights() -> None:
    """Examples of 1, 3 and 2 unmasked tokens: each one's own mean, not its share of the batch."""
    torch.manual_seed(0)
    embed = nn.Embedding(5, 4)
    model = nn.Sequential(embed, nn.Linear(4, 5))
    batch = torch.tensor([[1, 0, 0], [2, 3, 3], [4, 1, 0]])

    def loss(model: nn.Module, tokens: Tensor) -> Tensor:
        return F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten(), ignore_index=0)

    task = Task(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        list(batch),
        loss,
        weight=lambda tokens: float((tokens != 0).sum()),
    )
    wanted = []
    for row in batch:
        gradients = torch.autograd.grad(loss(model, row[None]), list(model.parameters()))
        wanted.append(sum(g.square().sum() for g in gradients))
    torch.testing.assert_close(
        per_example_grad_sq(task, batch), torch.stack(wanted), rtol=1e-9, atol=0
    )
