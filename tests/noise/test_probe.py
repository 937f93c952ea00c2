"""Oracles: the quadratic task's closed form, and gradients stored one by one (rungs 1 and 3)."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rightbatch import Task, supervised
from rightbatch._time import Deadline
from rightbatch.errors import TaskError
from rightbatch.noise import measure_noise
from rightbatch.noise.estimators import NoiseEstimate, estimate_noise
from rightbatch.noise.probe import run_probe
from rightbatch.noise.record import Record
from rightbatch.noise.squares import inner_products
from rightbatch.results import Status
from rightbatch.testing import FakeClock, QuadraticTask
from tests.zoo import WORKING, Specimen


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr)


def regression(count: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(3), torch.randn(2)) for _ in range(count)]


def probe(task: Task, **options: object) -> tuple[NoiseEstimate, Record]:
    defaults: dict[str, object] = {
        "precision": None,
        "max_examples": 10_000,
        "micro_batch_size": None,
        "deadline": Deadline(math.inf),
        "seed": 0,
    }
    probed = run_probe(task, **(defaults | options))  # type: ignore[arg-type]
    return probed.euclidean, probed.record


def by_definition(task: Task, size: int, seed: int = 0) -> tuple[list[float], list[float], float]:
    """Squares, inner products with the mean before, and M, from gradients that are stored."""
    total: Tensor | None = None
    squares, inner_products, units = [], [], 0.0
    for batch in task.batches(size, seed=seed, epochs=1):
        loss, weight = task.loss(batch)
        parts = torch.autograd.grad(loss, task.parameters, allow_unused=True)
        gradient = torch.cat(
            [
                torch.zeros(p.numel()) if g is None else g.to_dense().flatten()
                for p, g in zip(task.parameters, parts, strict=True)
            ]
        )
        squares.append(gradient.square().sum().item())
        inner_products.append(0.0 if total is None else (gradient @ total / units).item())
        total = weight * gradient if total is None else total + weight * gradient
        units += weight
    assert total is not None
    return squares, inner_products, (total / units).square().sum().item()


def tied() -> Task:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(7, 4)
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.embedding(tokens))

    model = Tied()
    data = [(torch.randint(7, (5,)), torch.randint(7, (5,))) for _ in range(11)]
    loss = supervised(lambda logits, y: F.cross_entropy(logits.flatten(0, 1), y.flatten()))
    return Task(model, sgd(model), data, loss)


def padded() -> Task:
    model = nn.Linear(3, 2)
    data = [(torch.randn(6, 3), torch.randn(6, 2), torch.arange(6) < 1 + i % 6) for i in range(11)]

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        x, y, mask = batch
        return ((model(x) - y).square().sum(-1) * mask).sum() / mask.sum()

    return Task(model, sgd(model), data, loss, weight=lambda batch: batch[2].sum().item())


def frozen_and_conv() -> Task:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 2))
    model[0].weight.requires_grad_(False)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    data = [(torch.randn(1, 4, 4), torch.randn(2)) for _ in range(11)]
    return Task(model, sgd(model), data, supervised(F.mse_loss))


def batch_norm() -> Task:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    return Task(model, sgd(model), regression(12), supervised(F.mse_loss))


@pytest.mark.parametrize("make", [tied, padded, frozen_and_conv, batch_norm])
def test_three_floats_equal_those_of_stored_gradients(make: type) -> None:
    task = make()
    size = 3
    expected = by_definition(task, size)
    estimate, record = probe(task, micro_batch_size=size)
    assert [q[0] for q in record.squares] == pytest.approx(expected[0], rel=1e-10)
    assert [a[0] for a in record.inner_products] == pytest.approx(expected[1], rel=1e-9, abs=1e-14)
    weights = torch.tensor(record.weights).numpy() / record.units_per_example
    assert task.num_examples is not None
    again = estimate_noise(
        torch.tensor(expected[0]).numpy(),
        torch.tensor(expected[1]).numpy(),
        weights,
        expected[2],
        population=task.num_examples,
    )
    assert estimate.grad_sq == pytest.approx(again.grad_sq, rel=1e-8)  # type: ignore[attr-defined]
    assert estimate.trace_cov == pytest.approx(again.trace_cov, rel=1e-8)  # type: ignore[attr-defined]


def test_the_whole_data_set_gives_the_closed_form() -> None:
    quadratic = QuadraticTask(grad_sq=3.0, trace_cov=90.0, examples=61)  # ragged: 61 is prime
    noise = measure_noise(quadratic.task, precision=None, micro_batch_size=4, seed=1)
    assert noise.grad_sq == pytest.approx(3.0, rel=1e-6)
    assert noise.examples_used == 61
    assert noise.status is Status.OK
    assert noise.low <= 30.0 <= noise.high  # type: ignore[operator]


def test_micro_batches_of_one_give_the_trace_exactly() -> None:
    quadratic = QuadraticTask(grad_sq=3.0, trace_cov=90.0, examples=64)
    noise = measure_noise(quadratic.task, precision=None, micro_batch_size=1)
    assert noise.trace_cov == pytest.approx(90.0 * 64 / 63, rel=1e-6)


def test_it_stops_when_the_precision_is_reached() -> None:
    quadratic = QuadraticTask(grad_sq=16.0, trace_cov=16.0, examples=4096)
    coarse = measure_noise(quadratic.task, precision=0.5, micro_batch_size=4)
    fine = measure_noise(quadratic.task, precision=0.1, micro_batch_size=4)
    assert coarse.examples_used < fine.examples_used < 4096
    assert fine.status is Status.OK
    assert fine.high is not None
    assert fine.noise_scale is not None
    assert (fine.high - fine.low) / 2 / fine.noise_scale < 0.13


def test_too_few_examples_say_how_many_more() -> None:
    quadratic = QuadraticTask(grad_sq=1.0, trace_cov=100.0, examples=4096)
    noise = measure_noise(quadratic.task, precision=0.1, max_examples=600)
    assert noise.status is Status.TOO_FEW_EXAMPLES
    assert noise.examples_needed is not None
    assert noise.examples_needed > 600


def test_a_gradient_of_zero_is_unresolved_and_bounded_below() -> None:
    quadratic = QuadraticTask(grad_sq=0.0, trace_cov=10.0, examples=4096)
    noise = measure_noise(quadratic.task, max_examples=512)
    assert noise.high is None
    assert noise.status in (Status.UNRESOLVED, Status.AT_LEAST)


def test_a_spent_time_budget_ends_the_probe_with_what_is_known() -> None:
    quadratic = QuadraticTask(grad_sq=1.0, trace_cov=500.0, examples=4096)
    clock = FakeClock()
    seen: list[float] = []

    def tick(fraction: float, note: str) -> None:
        seen.append(fraction)
        clock.advance(1.0)

    noise = measure_noise(
        quadratic.task,
        precision=0.01,
        micro_batch_size=8,
        time_budget_seconds=5.5,
        progress=tick,
        clock=clock,
    )
    assert len(seen) == 6
    assert noise.examples_used == 48
    assert noise.status in (Status.OUT_OF_TIME, Status.AT_LEAST, Status.UNRESOLVED)
    assert all(0 <= fraction <= 1 for fraction in seen)


def test_tokens_are_converted_to_examples() -> None:
    """Every example twice in a row is one example of two units: the same noise in examples."""
    points = torch.randn(40, 3)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return (model.weight - batch).square().mean() / 2 * 3

    plain = nn.Linear(3, 1, bias=False)
    doubled = nn.Linear(3, 1, bias=False)
    doubled.load_state_dict(plain.state_dict())
    one = measure_noise(Task(plain, sgd(plain), points, loss), precision=None, micro_batch_size=2)
    two = measure_noise(
        Task(doubled, sgd(doubled), points, loss, weight=lambda batch: 2.0 * len(batch)),
        precision=None,
        micro_batch_size=2,
    )
    assert two.noise_scale == pytest.approx(one.noise_scale, rel=1e-9)
    assert two.trace_cov == pytest.approx(one.trace_cov, rel=1e-9)
    assert two.low == pytest.approx(one.low, rel=1e-9)


def test_existing_gradients_come_back_in_the_same_tensors() -> None:
    model = nn.Linear(3, 2)
    task = Task(model, sgd(model), regression(20), supervised(F.mse_loss))
    task.loss(next(task.batches(4)))[0].backward()
    before = [(p.grad, p.grad.clone()) for p in model.parameters() if p.grad is not None]
    assert len(before) == 2
    measure_noise(task, micro_batch_size=2)
    for parameter, (gradient, value) in zip(model.parameters(), before, strict=True):
        assert parameter.grad is gradient
        assert torch.equal(gradient, value)
        assert not parameter._backward_hooks


def test_a_nan_in_the_data_is_named() -> None:
    model = nn.Linear(3, 2)
    data = regression(40)
    data[37][0][1] = math.nan
    task = Task(model, sgd(model), data, supervised(F.mse_loss))
    with pytest.raises(TaskError, match=r"gradients must be finite, got \|g\|\^2 = nan in micro-"):
        measure_noise(task, precision=None, micro_batch_size=4, seed=1)


def test_two_micro_batches_are_refused_with_the_remedy() -> None:
    model = nn.Linear(3, 2)
    task = Task(model, sgd(model), regression(8), supervised(F.mse_loss))
    with pytest.raises(TaskError, match=r"got 2 of 4 examples from 8.*smaller `micro_batch_size`"):
        measure_noise(task, micro_batch_size=4)


def test_a_short_stream_ends_the_probe() -> None:
    class Stream(torch.utils.data.IterableDataset[tuple[Tensor, Tensor]]):
        def __iter__(self):  # type: ignore[no-untyped-def]
            return iter(data)

    data = regression(21)
    model = nn.Linear(3, 2)
    task = Task(model, sgd(model), Stream(), supervised(F.mse_loss), batch_size=4)
    noise = measure_noise(task, precision=0.01, micro_batch_size=4)
    assert noise.examples_used == 21


@pytest.mark.parametrize(
    "options", [{"precision": 0.0}, {"max_examples": 0}, {"micro_batch_size": -1}]
)
def test_wrong_options_are_refused(options: dict[str, float]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"`{name}` must be positive"):
        measure_noise(QuadraticTask(examples=64).task, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["flat", "permuted", "mixed", "sparse", "expanded"])
def test_inner_products_do_not_depend_on_layout(dtype: torch.dtype, layout: str) -> None:
    left, right = torch.randn(2, 3, 70, 700).to(dtype).unbind(0)  # more than one chunk
    expected = (left.double() * right.double()).sum().item()
    if layout == "permuted":
        left, right = (t.permute(2, 0, 1).contiguous().permute(1, 2, 0) for t in (left, right))
    elif layout == "mixed":
        left = left.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    elif layout == "sparse":
        left = left.to_sparse()
    elif layout == "expanded":
        left = left[:1].expand(3, -1, -1)
        expected = (left.double() * right.double()).sum().item()
    scale = math.sqrt(left.numel() if layout != "sparse" else 147_000)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    assert inner_products(left, right).item() == pytest.approx(expected, abs=tolerance * scale)


@pytest.mark.parametrize("specimen", WORKING, ids=str)
def test_the_zoo_equals_its_definition(specimen: Specimen) -> None:
    task = specimen.make()
    with task.preserved():
        expected = by_definition(task, 2)
    if len(expected[0]) < 3:
        with pytest.raises(TaskError, match="at least three micro-batches"):
            probe(task, micro_batch_size=2)
        return
    with task.preserved():
        _, record = probe(task, micro_batch_size=2)
    assert [q[0] for q in record.squares] == pytest.approx(expected[0], rel=1e-9)
    assert [a[0] for a in record.inner_products] == pytest.approx(expected[1], rel=1e-7, abs=1e-12)
