"""The public doubles. Oracle: closed form and the definition (a loop over examples)."""

import pytest
import torch

from rightbatch.testing import FakeClock, FakeMemory, QuadraticTask


def test_the_clock_goes_on_only_when_told() -> None:
    clock = FakeClock(10.0)
    assert (clock(), clock()) == (10.0, 10.0)
    clock.advance(0.5)
    clock.advance(0.25)
    assert clock() == 10.75


def test_the_clock_never_runs_backwards() -> None:
    with pytest.raises(ValueError, match=r"got -0\.1"):
        FakeClock().advance(-0.1)
    with pytest.raises(ValueError, match="got nan"):
        FakeClock().advance(float("nan"))


@pytest.mark.parametrize("budget_bytes", [0, 99, 100, 350, 1000, 10**6])
def test_the_memorys_answer_is_the_largest_size_that_fits(budget_bytes: int) -> None:
    memory = FakeMemory([(100, 0), (50, 3), (0, 4)], limit_bytes=1000)
    fitting = [b for b in range(1, 400) if memory.peak_bytes(b) <= min(budget_bytes, 1000)]
    assert memory.largest_batch_size(budget_bytes=budget_bytes) == max(fitting, default=0)


def test_a_memory_that_does_not_grow_has_no_largest_size() -> None:
    assert FakeMemory([(100, 0)], limit_bytes=1000).largest_batch_size(budget_bytes=500) is None


def test_a_memory_without_room_for_its_fixed_part_fits_nothing() -> None:
    memory = FakeMemory([(100, 0), (0, 1)], limit_bytes=50)
    assert memory.largest_batch_size(budget_bytes=500) == 0
    assert memory(1).outcome == "oom"


@pytest.mark.parametrize(("grad_sq", "trace_cov"), [(1.0, 16.0), (0.25, 3.0), (4.0, 0.0)])
def test_the_quadratics_noise_is_as_promised_example_by_example(
    grad_sq: float, trace_cov: float
) -> None:
    quadratic = QuadraticTask(grad_sq=grad_sq, trace_cov=trace_cov, examples=11, dimension=3)
    task, gradients = quadratic.task, []
    for example in quadratic.points:
        task.optimizer.zero_grad()
        task.loss(example[None])[0].backward()
        gradients.append(task.model.theta.grad.clone())
    stacked = torch.stack(gradients)
    mean = stacked.mean(0)
    assert mean.square().sum().item() == pytest.approx(grad_sq, rel=1e-12)
    spread = (stacked - mean).square().sum(1).mean().item()
    assert spread == pytest.approx(trace_cov, rel=1e-12)
    assert quadratic.noise_scale == trace_cov / grad_sq


def test_the_quadratic_diverges_just_above_a_rate_of_two() -> None:
    def distance_after(rate: float) -> float:
        quadratic = QuadraticTask(learning_rate=rate)
        task, mean = quadratic.task, quadratic.points.mean(0)
        for _ in range(50):
            task.step(quadratic.points)
        return (task.model.theta - mean).norm().item()

    assert distance_after(1.99) < 1.0 < distance_after(2.01)


def test_the_quadratic_is_the_same_for_the_same_seed() -> None:
    first, same, other = (QuadraticTask(seed=seed).points for seed in (3, 3, 4))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
