"""One forward pass and many steps: closed forms, and the definition with copies of the model."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rightbatch as rb
from tests.ranks import on_two_ranks

Batch = tuple[Tensor, Tensor]


def batch_of(size: int) -> Batch:
    generator = torch.Generator().manual_seed(size)
    return torch.randn(size, 3, generator=generator), torch.randn(size, 2, generator=generator)


def losses(model: nn.Module, batch: Batch) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1], reduction="none").mean(1)


def network(*extra: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), *extra, nn.Linear(5, 2))


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def stepped(
    model: nn.Module,
    make: Callable[[Any], torch.optim.Optimizer],
    num_parts: int,
    batch: Batch | None = None,
) -> list[float]:
    return rb.one_forward_many_backwards(
        model,
        optimizer=make(model.parameters()),
        batch=batch_of(12) if batch is None else batch,
        losses=losses,
        num_parts=num_parts,
    )


def sgd(rate: float, **options: Any) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=rate, **options)


@pytest.mark.parametrize("num_parts", [1, 2, 3, 4, 12])
def test_steps_of_gradient_descent_are_one_step_at_so_many_times_the_rate(num_parts: int) -> None:
    model, twin = network(), network()
    stepped(model, sgd(0.1), num_parts)
    losses(twin, batch_of(12)).mean().backward()
    sgd(0.1 * num_parts)(twin.parameters()).step()
    torch.testing.assert_close(weights(model), weights(twin), rtol=1e-12, atol=1e-14)
    assert not torch.allclose(weights(model), weights(network()))


@pytest.mark.parametrize(
    "make",
    [
        sgd(0.1),
        sgd(0.1, momentum=0.9, weight_decay=0.01),
        lambda parameters: torch.optim.Adam(parameters, lr=0.1),
    ],
    ids=["sgd", "momentum", "adam"],
)
@pytest.mark.parametrize("size", [12, 13])
def test_each_part_has_the_gradient_of_the_first_weights(
    make: Callable[[Any], torch.optim.Optimizer], size: int
) -> None:
    """The definition: a fresh copy of the first model computes each part on its own."""
    model, first = network(), network()
    followed = network()
    optimizer = make(followed.parameters())
    batch = batch_of(size)
    expected = []
    for inputs, targets in zip(batch[0].tensor_split(5), batch[1].tensor_split(5), strict=True):
        twin = copy.deepcopy(first)
        loss = losses(twin, (inputs, targets)).mean()
        loss.backward()
        expected.append(loss.item())
        for parameter, source in zip(followed.parameters(), twin.parameters(), strict=True):
            parameter.grad = source.grad
        optimizer.step()
    assert stepped(model, make, 5, batch) == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(weights(model), weights(followed), rtol=1e-12, atol=1e-14)


def test_one_part_is_an_ordinary_step_to_the_bit() -> None:
    model, twin = network(), network()
    optimizer = torch.optim.Adam(twin.parameters(), lr=0.1)
    loss = losses(twin, batch_of(12)).mean()
    loss.backward()
    optimizer.step()
    assert stepped(model, lambda p: torch.optim.Adam(p, lr=0.1), 1) == [loss.item()]
    assert torch.equal(weights(model), weights(twin))


def test_without_copies_autograd_refuses() -> None:
    """Why the copies are there: the second backward pass would go through changed weights."""
    model = network()
    optimizer = sgd(0.1)(model.parameters())
    first, second = losses(model, batch_of(12)).tensor_split(2)
    first.mean().backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        second.mean().backward()


class Counted(nn.Module):
    """Counts its forward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def forward(self, batch: Tensor) -> Tensor:
        self.passes += 1
        return batch


def test_there_is_one_forward_pass_with_its_statistics_and_random_numbers() -> None:
    counted, norm = Counted(), nn.BatchNorm1d(5)
    model = network(counted, norm, nn.Dropout(0.5))
    torch.manual_seed(3)
    stepped(model, sgd(0.1), 4)
    drawn = torch.rand(1)
    assert (counted.passes, norm.num_batches_tracked.item()) == (1, 1)
    torch.manual_seed(3)
    model(batch_of(12)[0])
    assert torch.equal(torch.rand(1), drawn)


class Tied(nn.Module):
    """One weight used twice, one frozen, one never used; the loss looks inside."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.first.bias.requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(2))


def inside(model: nn.Module, batch: Batch) -> Tensor:
    return model.second(model.first(batch[0]).tanh()).square().mean(1)


def test_tied_frozen_and_unused_parameters() -> None:
    model, twin = Tied(), Tied()
    optimizer = sgd(0.1)(model.parameters())
    rb.one_forward_many_backwards(
        model, optimizer=optimizer, batch=batch_of(12), losses=inside, num_parts=3
    )
    inside(twin, batch_of(12)).mean().backward()
    sgd(0.3)(twin.parameters()).step()
    torch.testing.assert_close(weights(model), weights(twin), rtol=1e-12, atol=1e-14)
    assert model.unused.grad is None
    assert model.second.weight is model.first.weight
    assert not torch.allclose(weights(model), weights(Tied()))


@pytest.mark.parametrize("num_parts", [0, -1, 2.0, True])
def test_a_number_of_parts_that_is_none_is_refused(num_parts: Any) -> None:
    with pytest.raises(ValueError, match=f"at least 1, got num_parts={num_parts!r}"):
        stepped(network(), sgd(0.1), num_parts)


def test_more_parts_than_examples_are_refused() -> None:
    model = network()
    with pytest.raises(rb.TaskError, match="got 13 parts of 12 examples"):
        stepped(model, sgd(0.1), 13)
    assert torch.equal(weights(model), weights(network()))


@pytest.mark.parametrize(
    ("wrong", "shown"),
    [
        (lambda model, batch: losses(model, batch).mean(), r"got \(\)"),
        (lambda model, batch: model(batch[0]), r"got \(12, 2\)"),
        (lambda model, batch: losses(model, batch).tolist(), "got list"),
    ],
    ids=["mean", "outputs", "list"],
)
def test_what_is_not_one_loss_for_each_example_is_refused(
    wrong: Callable[..., Any], shown: str
) -> None:
    model = network()
    with pytest.raises(rb.TaskError, match=f"one loss for each example, {shown}"):
        rb.one_forward_many_backwards(
            model,
            optimizer=sgd(0.1)(model.parameters()),
            batch=batch_of(12),
            losses=wrong,
            num_parts=2,
        )


def test_parameters_outside_of_the_model_are_refused() -> None:
    model, outside = network(), nn.Parameter(torch.ones(1))
    with pytest.raises(rb.TaskError, match="got 1 that are not in Sequential"):
        stepped(model, lambda parameters: sgd(0.1)([*parameters, outside]), 2)


def refused(rank: int) -> str:
    model = nn.parallel.DistributedDataParallel(network())
    with pytest.raises(rb.TaskError, match="got one that 2 ranks train together") as found:
        stepped(model, sgd(0.1), 2)
    return str(found.value)


@pytest.mark.slow
def test_a_model_of_several_ranks_is_refused() -> None:
    first, second = on_two_ranks(refused)
    assert first == second
    assert "got one that 2 ranks train together" in first


def test_an_optimizer_that_computes_losses_itself_is_refused_before_anything_changes() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.LBFGS(model.parameters())
    with pytest.raises(rb.TaskError, match="must step by gradients alone, got LBFGS"):
        rb.one_forward_many_backwards(
            model,
            optimizer=optimizer,
            batch=torch.ones(4, 2),
            losses=lambda model, inputs: model(inputs).square().flatten(),
            num_parts=2,
        )
    assert all(parameter.grad is None for parameter in model.parameters())
