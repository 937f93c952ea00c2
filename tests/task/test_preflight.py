"""What is found out before anything is measured, beyond what the zoo shows."""

import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rightbatch.errors import NotRepeatable, RightBatchError, TaskError
from rightbatch.task import Task
from rightbatch.task.preflight import mixes_examples, preflight
from tests.laws import assert_world_unchanged
from tests.zoo import Branches, Rows, mse, refused_loss, regression, rows, sgd, small_net


def faulty(loss: Any, **options: Any) -> Task:
    model = small_net()
    return Task(model, sgd(model), rows(), loss, batch_size=4, **options)


def test_a_healthy_task_has_no_warnings() -> None:
    assert preflight(regression(small_net())) == ()


def test_nothing_larger_than_eight_examples_is_tried() -> None:
    sizes = []
    note = sizes.append  # the list itself would be put back

    def loss(model: nn.Module, batch: Any) -> Tensor:
        note(len(batch[0]))
        return mse(model, batch)

    model = small_net()
    preflight(Task(model, sgd(model), rows(), loss, batch_size=20))
    preflight(Task(model, sgd(model), rows(), loss, batch_size=3))
    assert sizes == [8, 8, 3, 3]


# Warnings.


def test_unreached_parameters_are_named() -> None:
    (warning,) = preflight(regression(Branches(use_second=False)))
    assert "No gradient reaches second.weight, second.bias" in warning


def test_a_gradient_from_earlier_does_not_hide_that_none_comes_now() -> None:
    model = Branches(use_second=False)
    model.second.weight.grad = torch.ones_like(model.second.weight)
    (warning,) = preflight(regression(model))
    assert "second.weight" in warning
    assert torch.equal(model.second.weight.grad, torch.ones_like(model.second.weight))


def test_a_data_set_that_draws_at_random_leaves_the_random_state() -> None:
    class Augmented(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            inputs, targets = super().__getitem__(index)
            return inputs + torch.randn(3) + random.random(), targets

    task = regression(small_net(), dataset=Augmented(rows()))
    assert_world_unchanged(task, lambda: preflight(task))


def test_many_names_are_cut_after_five() -> None:
    layers = nn.ModuleList(nn.Linear(1, 1) for _ in range(4))
    model = nn.ModuleDict({"used": nn.Linear(3, 1), "unused": layers})
    loss = lambda model, batch: F.mse_loss(model["used"](batch[0]), batch[1])  # noqa: E731
    (warning,) = preflight(Task(model, sgd(model), rows(), loss, batch_size=4))
    assert "unused.2.weight and 3 more" in warning
    assert "unused.2.bias" not in warning


def test_untrained_parameters_are_named() -> None:
    model = small_net()
    task = regression(model, torch.optim.SGD([model[0].weight, model[2].weight], lr=0.1))
    (warning,) = preflight(task)
    assert "No optimizer group trains 0.bias, 2.bias" in warning
    assert "weight" not in warning


def test_what_is_frozen_and_untrained_is_no_news() -> None:
    model = small_net()
    model[0].requires_grad_(False)
    assert preflight(regression(model, torch.optim.SGD(model[2].parameters(), lr=0.1))) == ()


def test_frozen_parameters_are_no_news() -> None:
    assert preflight(regression(Branches(freeze_second=True))) == ()


@pytest.mark.parametrize(
    ("norm", "mixes"),
    [
        (nn.BatchNorm1d(3), True),
        (nn.BatchNorm1d(3).eval(), False),
        (nn.BatchNorm1d(3, track_running_stats=False).eval(), True),
        (nn.SyncBatchNorm(3), True),
        (nn.LayerNorm(3), False),
        (nn.InstanceNorm1d(3), False),
    ],
    ids=lambda value: repr(value) if isinstance(value, nn.Module) else "",
)
def test_modules_that_mix_examples_are_known(norm: nn.Module, mixes: bool) -> None:
    assert mixes_examples(nn.Sequential(norm)) is mixes


def test_what_batch_norm_changes_is_said() -> None:
    (warning,) = preflight(regression(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))))
    assert "0 (BatchNorm in train mode) mixes the examples" in warning
    assert "micro-batches of 4" in warning


# Refusals.


@pytest.mark.parametrize(
    ("factor", "got"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")]
)
def test_a_loss_that_is_not_finite_is_refused(factor: float, got: str) -> None:
    with pytest.raises(TaskError, match=f"must be finite, got {got} at the present weights"):
        preflight(faulty(lambda *args: mse(*args) * factor))


def test_a_gradient_that_is_not_finite_is_refused_by_name() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return torch.sqrt(mse(model, batch) * 0)  # 0, with an infinite slope

    with pytest.raises(TaskError, match=r"NaN or infinity in '0\.weight' from a loss of 0\.0"):
        preflight(faulty(loss))


def test_a_sparse_gradient_that_is_not_finite_is_refused() -> None:
    model = nn.Embedding(4, 2, sparse=True)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return torch.sqrt(model(batch).sum() * 0)

    task = Task(model, sgd(model), torch.arange(4), loss, batch_size=2)
    with pytest.raises(TaskError, match="got NaN or infinity in 'weight'"):
        preflight(task)


def test_a_loss_that_remembers_is_not_repeatable() -> None:
    seen = []

    def loss(model: nn.Module, batch: Any) -> Tensor:
        seen.append(1)
        return mse(model, batch) * len(seen)

    with pytest.raises(NotRepeatable, match=r"must agree, got [\d.]+ and [\d.]+"):
        preflight(faulty(loss))


def test_a_random_loss_on_torchs_generator_is_repeatable() -> None:
    assert preflight(faulty(lambda *args: mse(*args) * torch.rand(()))) == ()


def test_rounding_is_no_reason_to_refuse() -> None:
    seen = []

    def loss(model: nn.Module, batch: Any) -> Tensor:
        seen.append(1)
        return mse(model, batch) * (1 + 1e-5 * len(seen))

    assert preflight(faulty(loss)) == ()


def test_rows_that_a_collate_function_adds_need_a_weight() -> None:
    def twice(examples: Rows) -> tuple[Tensor, ...]:
        return tuple(torch.stack(column * 2) for column in zip(*examples, strict=True))

    with pytest.raises(TaskError, match="got 8 rows for 4 examples"):
        preflight(faulty(mse, collate_fn=twice))
    assert preflight(faulty(mse, collate_fn=twice, weight=lambda batch: len(batch[0]))) == ()


@pytest.mark.parametrize("units", [0.0, math.nan])
def test_an_impossible_weight_is_refused(units: float) -> None:
    with pytest.raises(TaskError, match=f"positive and finite, got {units}"):
        preflight(faulty(mse, weight=lambda batch: units))


def test_a_line_search_is_refused_before_any_batch() -> None:
    model = small_net()
    with pytest.raises(TaskError, match="must work without a closure, got LBFGS"):
        preflight(regression(model, torch.optim.LBFGS(model.parameters())))


def test_a_stream_without_examples_is_refused() -> None:
    class Nothing(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(())

    with pytest.raises(TaskError, match="got none in epoch 1 of Nothing"):
        preflight(regression(small_net(), dataset=Nothing()))


# The user's own errors.


@pytest.mark.parametrize("error", [KeyError("nope"), ValueError("shapes"), RuntimeError("mat1")])
def test_the_users_error_is_told_and_stays_the_cause(error: Exception) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        raise error

    name = type(error).__name__
    with pytest.raises(TaskError, match=f"must run on a batch, got {name}: ") as caught:
        preflight(faulty(loss))
    assert caught.value.__cause__ is error


def test_an_error_of_the_data_set_is_told_as_one() -> None:
    class Broken(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            raise OSError(f"no file {index}")

    task = regression(small_net(), dataset=Broken(rows()))
    with pytest.raises(TaskError, match=r"`dataset` must yield a batch, got OSError: no file \d"):
        preflight(task)


def test_an_error_on_the_way_back_is_told_as_one() -> None:
    class Refuse(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Tensor) -> Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            raise RuntimeError("no way back")

    task = faulty(lambda *args: Refuse.apply(mse(*args)))
    with pytest.raises(TaskError, match="must have a gradient, got RuntimeError: no way back"):
        preflight(task)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError("no"), RightBatchError("x")]
)
def test_memory_and_our_own_errors_pass_unchanged(error: Exception) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        raise error

    with pytest.raises(type(error), match=str(error)) as caught:
        preflight(faulty(loss))
    assert caught.value is error


def test_a_loss_of_another_model_is_refused() -> None:
    with pytest.raises(TaskError, match="got none from a loss of"):
        preflight(refused_loss(lambda _, batch: mse(small_net(), batch))())
