"""What a task's code keeps for itself is put back. Oracle: numbers by hand, before and after."""

import queue
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from rightbatch.task import Task
from rightbatch.task.storages import Span
from rightbatch.testing import FakeClock


def task_of(loss: Callable[[nn.Module, Any], Tensor], model: nn.Module | None = None) -> Task:
    model = nn.Linear(2, 1) if model is None else model
    rows = torch.utils.data.TensorDataset(torch.randn(16, 2), torch.randn(16, 1))
    return Task(model, torch.optim.SGD(model.parameters(), lr=0.1), rows, loss, batch_size=4)


def mse(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def take_steps(task: Task, *, weights: bool = True) -> None:
    """Take three steps inside; where weights are not kept, compute three losses."""
    with task.preserved(weights=weights):
        for batch in islice(task.batches(4), 3):
            if weights:
                task.step(batch)
            else:
                task.loss(batch)[0].backward()


@contextmanager
def copied_bytes() -> Iterator[list[int]]:
    """Count the bytes that are copied of what the code refers to."""
    copies: list[int] = []
    keep = Span.keep

    def counted(self: Span) -> Callable[[], None]:
        copies.append(self.end - self.start)
        return keep(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Span, "keep", counted)
        yield copies


def test_an_average_in_a_hook_after_the_step() -> None:
    task = task_of(mse)
    average = AveragedModel(task.model)
    task.optimizer.register_step_post_hook(lambda *_: average.update_parameters(task.model))
    task.step(next(task.batches(4)))
    task.step(next(task.batches(4)))
    weight, before = average.module.weight, average.module.weight.tolist()
    take_steps(task)
    assert average.n_averaged.item() == 2
    assert average.module.weight is weight
    assert weight.tolist() == before
    task.step(next(task.batches(4)))
    assert average.n_averaged.item() == 3  # and goes on from there


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("way", ["in place", "through .data", ".data assigned", "lerp of no_grad"])
def test_an_average_inside_the_loss(way: str, weights: bool) -> None:
    mean = nn.Parameter(torch.tensor([1.0, 3.0]), requires_grad=False)
    view, place = mean[1:], mean.data_ptr()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        if way == "in place":
            mean.mul_(0.5)
        elif way == "through .data":
            mean.data.mul_(0.5)
        elif way == ".data assigned":
            mean.data = 0.5 * mean.data
        else:
            with torch.no_grad():
                mean.lerp_(torch.zeros(2), 0.5)
        return mse(model, batch) + mean.sum()

    take_steps(task_of(loss), weights=weights)
    assert mean.tolist() == [1.0, 3.0]
    assert view.tolist() == [3.0]
    assert mean.data_ptr() == place


class Centred(nn.Module):
    """A criterion with a running centre, an attribute, a queue and a count."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.register_buffer("centre", torch.tensor([2.0]))
        self.in_place, self.calls, self.late = in_place, 0, None
        self.queue: deque[Tensor] = deque([torch.tensor([7.0])], maxlen=2)

    def forward(self, output: Tensor) -> Tensor:
        self.calls += 1
        self.late = output.detach()
        self.queue.append(output.detach())
        self.queue[0].zero_()
        if self.in_place:
            self.centre.mul_(0.5).add_(output.detach().mean(0))
        else:
            self.centre = 0.5 * self.centre + output.detach().mean(0)
        return (output - self.centre).square().mean()


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("in_place", [True, False])
def test_what_a_criterion_keeps(in_place: bool, weights: bool) -> None:
    criterion = Centred(in_place=in_place)
    centre, queue, feature = criterion.centre, criterion.queue, criterion.queue[0]
    task = task_of(lambda model, batch: criterion(model(batch[0])))
    take_steps(task, weights=weights)
    assert criterion.centre is centre
    assert centre.tolist() == [2.0]
    assert criterion.queue is queue
    assert [id(item) for item in queue] == [id(feature)]
    assert feature.tolist() == [7.0]
    assert (criterion.calls, criterion.late) == (0, None)
    assert queue.maxlen == 2


class Slotted:
    """Counts in a slot."""

    __slots__ = ("calls", "late")

    def __init__(self) -> None:
        self.calls = 1


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("beside", [None, torch.zeros(1)], ids=["alone", "beside a tensor"])
def test_counts_go_on_but_beside_a_tensor(beside: Tensor | None, weights: bool) -> None:
    counts: dict[str, Any] = {"calls": 1, "beside": beside}
    seen, names, table = [1, beside], {"a", beside}, SimpleNamespace(calls=1, beside=beside)
    slotted, array = Slotted(), np.ones(2)
    slotted.late = beside
    nested = {"inner": [{"calls": 1, "beside": [beside]}]}

    def loss(model: nn.Module, batch: Any) -> Tensor:
        counts["calls"] += 1
        seen.append(2)
        names.add("b")
        table.calls += 1
        slotted.calls += 1
        array.fill(3)
        nested["inner"][0]["calls"] += 1  # type: ignore[operator]
        return mse(model, batch)

    take_steps(task_of(loss), weights=weights)
    kept = beside is not None
    assert [counts["calls"], table.calls, slotted.calls, nested["inner"][0]["calls"]] == [
        1 if kept else 4
    ] * 4
    assert (seen, len(names)) == (([1, beside], 2) if kept else ([1, None, 2, 2, 2], 3))
    assert array.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("weights", [True, False])
def test_a_tensor_that_is_kept_from_now_on_is_let_go(weights: bool) -> None:
    last, features, slotted = None, deque[Tensor](), Slotted()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        nonlocal last
        last = slotted.late = batch[0]
        features.append(last)
        vars(loss)["late"] = [last]
        return mse(model, batch)

    take_steps(task_of(loss), weights=weights)
    assert (last, len(features), hasattr(slotted, "late"), vars(loss)) == (None, 0, False, {})


def test_random_generators_that_a_loss_draws_from() -> None:
    kinds: list[Any] = [
        np.random.default_rng(0),
        np.random.RandomState(0),
        random.Random(0),
        torch.Generator().manual_seed(0),
    ]

    def draw() -> list[float]:
        numbers = [kinds[0].random(), kinds[1].random_sample(), kinds[2].random()]
        return [*numbers, torch.rand(1, generator=kinds[3]).item()]

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return mse(model, batch) + sum(draw())

    task = task_of(loss)
    with task.preserved():
        expected = draw()
    take_steps(task)
    assert draw() == expected


def test_flags_and_gradients_of_what_is_trained_by_nobody() -> None:
    scale = nn.Parameter(torch.ones(1))
    frozen = nn.Parameter(torch.ones(1), requires_grad=False)
    scale.grad = torch.tensor([5.0])
    grad = scale.grad

    def loss(model: nn.Module, batch: Any) -> Tensor:
        frozen.requires_grad_(True)
        return scale * frozen * mse(model, batch)

    loss_of = task_of(lambda model, batch: loss(model, batch).sum())
    take_steps(loss_of)
    assert scale.grad is grad
    assert grad.tolist() == [5.0]
    assert (frozen.requires_grad, frozen.grad) == (False, None)


def frozen(size: int) -> nn.Module:
    return nn.Linear(size, 1, bias=False, dtype=torch.float32).eval().requires_grad_(False)


def test_a_teacher_is_not_copied() -> None:
    teacher, width = frozen(300_000), 300_000
    twin = frozen(300_000).train()
    before = teacher.weight.clone()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return mse(model, batch) + teacher(torch.zeros(1, width, dtype=torch.float32)).sum()

    with copied_bytes() as copies:
        take_steps(task_of(loss))
    assert copies == []
    assert torch.equal(teacher.weight, before)
    with copied_bytes() as copies:
        take_steps(task_of(lambda model, batch: loss(model, batch) + 0 * twin.weight.sum()))
    assert copies == [1_200_000]  # of the one that may be trained


@pytest.mark.parametrize("kind", ["small", "trainable"])
def test_a_module_in_eval_mode_that_is_small_or_trainable_is_put_back(kind: str) -> None:
    module = frozen(300_000 if kind == "trainable" else 3)
    module.bias = nn.Parameter(torch.zeros(1), requires_grad=kind == "trainable")
    before = module.weight.tolist()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        module.weight.data.zero_()
        return mse(model, batch)

    take_steps(task_of(loss))
    assert module.weight.tolist() == before


def test_an_average_of_the_model_is_no_teacher() -> None:
    model = nn.Sequential(nn.Linear(2, 300_000, bias=False), nn.AdaptiveAvgPool1d(1))
    average = nn.Linear(2, 300_000, bias=False).eval().requires_grad_(False)
    before = average.weight.clone()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        with torch.no_grad():
            average.weight.lerp_(model[0].weight, 0.5)
        return mse(model, batch)

    take_steps(task_of(loss, model))
    assert torch.equal(average.weight, before)


def test_a_teacher_that_changes_is_warned_of() -> None:
    teacher = frozen(300_000)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        teacher.weight.zero_()
        return mse(model, batch)

    with pytest.warns(UserWarning, match=r"got a parameter of shape \(1, 300000\) that did"):
        take_steps(task_of(loss))


def test_a_storage_is_copied_once_however_many_look_at_it() -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    tied = [whole[1], whole[2], whole.t()[:2], whole[:, 1].expand(2, 3), whole[0]]

    def loss(model: nn.Module, batch: Any) -> Tensor:
        for part in (0, 1, 2, 4):
            tied[part].add_(1)
        return mse(model, batch)

    with copied_bytes() as copies:
        take_steps(task_of(loss))
    assert copies == [12 * 8]
    assert whole.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_only_the_part_that_is_looked_at_is_copied() -> None:
    column = torch.arange(12.0).reshape(3, 4)[:, 1]  # from element 1 to element 9

    def loss(model: nn.Module, batch: Any) -> Tensor:
        column.zero_()
        return mse(model, batch)

    with copied_bytes() as copies:
        take_steps(task_of(loss))
    assert copies == [9 * 8]
    assert column.tolist() == [1, 5, 9]


@pytest.mark.parametrize("weights", [True, False])
def test_what_is_the_models_is_not_copied_again(weights: bool) -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2)).backward()
    optimizer.step()
    alias, moment = model.weight.detach()[0], optimizer.state[model.weight]["exp_avg"]
    other = torch.zeros(1)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        settings = optimizer.param_groups[0]["lr"]
        return mse(model, batch) + 0 * settings * (alias.sum() + moment.sum() + other.sum())

    rows = [(torch.ones(2), torch.ones(1))] * 16
    with copied_bytes() as copies:
        take_steps(Task(model, optimizer, rows, loss), weights=weights)
    assert copies == [8]  # of `other`


@pytest.mark.parametrize("part", [slice(1, 2), slice(2, 4)], ids=["a gap", "the rest"])
def test_what_lies_between_and_beside_the_models_is_put_back(part: slice) -> None:
    flat = torch.arange(4.0)
    model = nn.Linear(2, 1)
    model.weight = nn.Parameter(flat[:3:2].view(1, 2))  # elements 0 and 2
    beside = flat[part]

    def loss(model: nn.Module, batch: Any) -> Tensor:
        beside.fill_(9)
        return mse(model, batch)

    take_steps(task_of(loss, model))
    assert flat.tolist() == [0, 1, 2, 3]


def test_the_data_set_is_neither_copied_nor_put_back() -> None:
    inputs, lengths = torch.randn(16, 2), [2] * 16
    half = inputs[:8]

    class Rows(torch.utils.data.Dataset):
        def __init__(self) -> None:
            self.inputs, self.lengths, self.drawn = inputs, lengths, 0

        def __len__(self) -> int:
            return 16

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            self.drawn += 1
            return self.inputs[index], torch.ones(1)

    rows = Rows()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        lengths[0] += 1
        return mse(model, batch) + 0 * half.sum() * rows.drawn

    model = nn.Linear(2, 1)
    task = Task(model, torch.optim.SGD(model.parameters(), lr=0.1), rows, loss)
    with copied_bytes() as copies:
        take_steps(task)
    assert copies == []
    assert (lengths[0], rows.drawn > 0) == (5, True)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("kind", ["meta", "empty", "lazy", "sparse", "csr", "bfloat16", "bool"])
def test_tensors_of_every_kind(kind: str) -> None:
    made: dict[str, Callable[[], Tensor]] = {
        "meta": lambda: torch.zeros(3, device="meta"),
        "empty": lambda: torch.zeros(0),
        "lazy": nn.UninitializedParameter,
        "sparse": lambda: torch.eye(3).to_sparse(),
        "csr": lambda: torch.eye(3).to_sparse_csr(),
        "bfloat16": lambda: torch.ones(3, dtype=torch.bfloat16),
        "bool": lambda: torch.tensor([True, False]),
    }
    tensor = made[kind]()
    has_numbers = kind not in {"meta", "lazy"}
    before = tensor.to_dense().tolist() if has_numbers else None

    def loss(model: nn.Module, batch: Any) -> Tensor:
        if has_numbers:
            (tensor.values() if kind == "csr" else tensor).zero_()
        return mse(model, batch)

    take_steps(task_of(loss))
    assert before == (tensor.to_dense().tolist() if has_numbers else None)


def test_a_storage_that_was_emptied_gets_its_numbers_back() -> None:
    tensor = torch.arange(3.0)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        tensor.untyped_storage().resize_(0)
        return mse(model, batch)

    take_steps(task_of(loss))
    assert tensor.tolist() == [0, 1, 2]


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_in_the_middle(error: type[BaseException]) -> None:
    mean, counts = torch.ones(2), {"calls": 0}

    def loss(model: nn.Module, batch: Any) -> Tensor:
        mean.zero_()
        counts["calls"] += 1
        if counts["calls"] == 2:
            raise error("half-way")
        return mse(model, batch)

    with pytest.raises(error, match="half-way"):
        take_steps(task_of(loss))
    assert (mean.tolist(), counts) == ([1, 1], {"calls": 2})


def test_an_error_keeps_what_is_noted_on_it() -> None:
    error = ZeroDivisionError("own")

    def loss(model: nn.Module, batch: Any) -> Tensor:
        error.add_note("at size 4")
        raise error

    with pytest.raises(ZeroDivisionError, match="own") as caught:
        take_steps(task_of(loss))
    assert caught.value.__notes__ == ["at size 4"]


def test_what_threads_share_and_clocks_go_on() -> None:
    jobs: queue.Queue[int] = queue.Queue()
    clock = FakeClock()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        jobs.put(1)
        clock.advance(1.0)
        return mse(model, batch)

    take_steps(task_of(loss))
    assert (jobs.qsize(), clock()) == (3, 3.0)


def test_a_loader_that_a_loss_draws_from_goes_on() -> None:
    """Its iterator cannot be turned back: half of it would make it hang or fail."""
    extra = iter(torch.utils.data.DataLoader(torch.arange(8.0), batch_size=2))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return mse(model, batch) + 0 * next(extra).sum()

    take_steps(task_of(loss))
    assert [part.tolist() for part in extra] == [[6, 7]]
