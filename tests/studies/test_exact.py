"""The exact value. Oracles: the closed form, and a loop over examples with plain autograd."""

import pytest
import torch
from torch import nn

import rightbatch as rb
from rightbatch.studies.exact import exact_noise
from rightbatch.testing import QuadraticTask


def small_task(examples: int = 700) -> rb.Task:
    """More than one chunk of examples, which do not divide."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = [(torch.randn(3), torch.tensor(i % 2)) for i in range(examples)]
    return rb.Task(model, optimizer, data, rb.supervised(nn.functional.cross_entropy))


def looped(task: rb.Task, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    rows = []
    for x, y in zip(*batch, strict=True):
        loss, _ = task.loss((x[None], y[None]))
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, task.parameters)]))
    return torch.stack(rows)


def test_the_whole_data_set_equals_the_loop_over_examples() -> None:
    task = small_task()
    each = looped(task, next(task.batches(700, epochs=1)))
    found = exact_noise(task)
    assert found.grad_sq == pytest.approx(each.mean(0).square().sum().item(), rel=1e-9)
    assert found.trace_cov == pytest.approx(each.var(0).sum().item(), rel=1e-9)


def test_the_whole_data_set_equals_the_closed_form() -> None:
    quadratic = QuadraticTask(grad_sq=2.0, trace_cov=50.0, examples=300)
    found = exact_noise(quadratic.task)
    assert found.grad_sq == pytest.approx(2.0, rel=1e-9)
    assert found.trace_cov == pytest.approx(50.0 * 300 / 299, rel=1e-9)


@pytest.mark.parametrize("examples", [37, 600])
def test_a_part_has_the_mean_s_own_noise_taken_off(examples: int) -> None:
    task = small_task()
    order = next(task.batches(700, seed=5, epochs=1))
    each = looped(task, (order[0][:examples], order[1][:examples]))
    found = exact_noise(task, examples=examples, seed=5)
    trace_cov = each.var(0).sum().item()
    assert found.trace_cov == pytest.approx(trace_cov, rel=1e-9)
    mean_sq = each.mean(0).square().sum().item()
    assert found.grad_sq == pytest.approx(mean_sq - trace_cov / examples, rel=1e-9)


def test_nothing_is_left_behind() -> None:
    task = small_task(40)
    before = [p.detach().clone() for p in task.parameters]
    exact_noise(task)
    assert all(p.grad is None for p in task.parameters)
    assert all(torch.equal(a, b) for a, b in zip(before, task.parameters, strict=True))
    assert all(p.requires_grad for p in task.parameters)
