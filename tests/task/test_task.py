"""What the constructor takes and refuses, and what a task says of itself. Oracle: closed form."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils.data import DataLoader

from rightbatch.errors import TaskError
from rightbatch.task import Task, supervised
from tests.zoo import frozen_everything, mse, regression, rows, sgd, small_net, two_groups


def build(**changed: Any) -> Task:
    """Make a task that works, but for what is changed."""
    model = changed.pop("model", None) or small_net()
    optimizer = changed.pop("optimizer", None) or sgd(model)
    dataset = changed.pop("dataset", rows())
    return Task(model, optimizer, dataset, changed.pop("loss", mse), **changed)


def test_supervised_calls_the_criterion_on_outputs_and_targets() -> None:
    loss = supervised(lambda outputs, targets: (outputs - targets).sum())
    batch = (torch.tensor([5.0, 1.0]), torch.tensor([1.0, 0.0]))
    assert loss(nn.Identity(), batch).item() == 5.0


# Refusals: the rule, what was got, and what to do.


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"model": 3, "optimizer": 1}, "`model` must be a torch.nn.Module, got int"),
        ({"model": nn.Identity, "optimizer": 1}, "`model` must be a torch.nn.Module, got type"),
        ({"optimizer": 3}, "`optimizer` must be a torch.optim.Optimizer, got int"),
        ({"loss": None}, "`loss` must be a function, got NoneType"),
        ({"loss": 0.5}, "`loss` must be a function, got float. rightbatch.supervised"),
        ({"weight": 1.0}, "`weight` must be a function, got float. weight\\(batch\\)"),
        ({"collate_fn": "pad"}, "`collate_fn` must be a function, got str"),
        ({"evaluate": 0.9}, "`evaluate` must be a function, got float"),
        ({"batch_size": 0}, "`batch_size` must be a whole number of at least 1, got 0"),
        ({"batch_size": -1}, "`batch_size` must be a whole number of at least 1, got -1"),
        ({"batch_size": 2.5}, "`batch_size` must be a whole number of at least 1, got 2.5"),
        ({"batch_size": 2.0}, "`batch_size` must be a whole number of at least 1, got 2.0"),
        ({"batch_size": True}, "`batch_size` must be a whole number of at least 1, got True"),
        ({"batch_size": "4"}, "`batch_size` must be a whole number of at least 1, got '4'"),
        ({"batch_size": math.nan}, "`batch_size` must be a whole number of at least 1, got nan"),
        ({"batch_size": math.inf}, "`batch_size` must be a whole number of at least 1, got inf"),
        ({"batch_size": [4]}, r"`batch_size` must be a whole number of at least 1, got \[4\]"),
        ({"max_batch_size": 0}, "`max_batch_size` must be a whole number of at least 1, got 0"),
        ({"num_workers": -1}, "`num_workers` must be a whole number of at least 0, got -1"),
        ({"num_workers": 1.5}, "`num_workers` must be a whole number of at least 0, got 1.5"),
        ({"clip_grad_norm": 0.0}, "`clip_grad_norm` must be positive, got 0.0"),
        ({"clip_grad_norm": math.nan}, "`clip_grad_norm` must be positive, got nan"),
        ({"batch_size": 25}, "got batch_size=25 and a cap of 24"),
        ({"batch_size": 9, "max_batch_size": 8}, "got batch_size=9 and a cap of 8"),
        ({"dataset": []}, "at least two examples, got 0"),
        ({"dataset": rows(1)}, "at least two examples, got 1"),
        ({"dataset": 7}, "`dataset` must be a Dataset, a list or a DataLoader, got int"),
        ({"dataset": None}, "`dataset` must be a Dataset, a list or a DataLoader, got NoneType"),
        ({"dataset": iter(rows())}, "must be re-iterable, got a one-shot list_iterator"),
        ({"dataset": (row for row in rows())}, "must be re-iterable, got a one-shot generator"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
def test_wrong_arguments_are_refused_by_name(changed: dict[str, Any], match: str) -> None:
    with pytest.raises(TaskError, match=match):
        build(**changed)


@pytest.mark.parametrize("rate", [0.0, math.nan, math.inf])
def test_a_rate_that_trains_nothing_is_refused(rate: float) -> None:
    model = small_net()
    optimizer = sgd(model)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": rate})
    with pytest.raises(TaskError, match=f"got lr={rate} in group 1"):
        build(model=model, optimizer=optimizer)


def test_a_model_without_a_trainable_parameter_is_refused() -> None:
    with pytest.raises(TaskError, match="got none with requires_grad=True"):
        frozen_everything()


def test_a_model_without_any_parameter_is_refused() -> None:
    with pytest.raises(TaskError, match="got none with requires_grad=True"):
        build(model=nn.Identity(), optimizer=sgd(small_net()))


def test_an_optimizer_of_another_model_is_refused() -> None:
    with pytest.raises(TaskError, match="got an optimizer that holds none of them"):
        build(optimizer=sgd(small_net()))


def test_a_loader_that_does_not_batch_is_refused() -> None:
    with pytest.raises(TaskError, match="got batch_size=None"):
        build(dataset=DataLoader(rows(), batch_size=None))


def test_every_refusal_says_what_to_do() -> None:
    """The rule, the value, and one more sentence."""
    with pytest.raises(TaskError, match=r"got 0\. \w+.*\.$"):
        build(batch_size=0)


# What is taken over.


def test_numpy_and_tensor_integers_count_as_whole_numbers() -> None:
    task = build(batch_size=np.int64(8), max_batch_size=torch.tensor(16))
    assert (task.batch_size, task.max_batch_size) == (8, 16)
    assert type(task.batch_size) is int


def test_the_cap_is_the_data_set_or_less() -> None:
    assert build().max_batch_size == 24
    assert build(max_batch_size=8).max_batch_size == 8
    assert build(max_batch_size=100).max_batch_size == 24


def test_without_a_batch_size_thirty_two_stands_in_within_the_cap() -> None:
    task = build()
    assert (task.batch_size, task.default_batch_size) == (None, 24)
    assert build(dataset=rows(100)).default_batch_size == 32
    assert build(batch_size=8).default_batch_size == 8


def test_a_loader_brings_its_batch_size_and_an_argument_wins() -> None:
    loader = DataLoader(rows(), batch_size=6)
    assert build(dataset=loader).batch_size == 6
    assert build(dataset=loader, batch_size=3).batch_size == 3


def test_the_name_is_the_models_class_unless_given() -> None:
    assert build().name == "Sequential"
    assert build(name="mine").name == "mine"


def test_batches_go_to_the_task_s_device() -> None:
    assert build().device.type == "cpu"
    inputs, targets = next(build(device="meta").batches(4))
    assert inputs.device.type == targets.device.type == "meta"


def test_a_device_without_an_index_is_the_model_s() -> None:
    with FakeTensorMode():  # the second GPU of a machine that has none
        model = nn.Module()
        model.weight = nn.Parameter(torch.empty(2, device="cuda:1"))
        assert build(model=model, device="cuda").device == torch.device("cuda:1")
        assert build(model=model, device="cuda:0").device == torch.device("cuda:0")
        assert build(model=model, device="cpu").device == torch.device("cpu")


def test_parameters_are_what_the_optimizer_trains_each_once() -> None:
    model = small_net()
    temperature, frozen = nn.Parameter(torch.ones(1)), model[2].bias.requires_grad_(False)
    groups = [{"params": [model[0].weight, temperature]}, {"params": [model[2].weight, frozen]}]
    task = build(model=model, optimizer=torch.optim.SGD(groups, lr=0.1))
    assert [id(p) for p in task.parameters] == [
        id(p) for p in (model[0].weight, temperature, model[2].weight)
    ]


# Loss and weight.


def test_loss_comes_with_its_number_of_examples() -> None:
    task = build()
    loss, weight = task.loss(next(task.batches(5)))
    assert loss.requires_grad
    assert weight == 5.0


def test_weight_counts_units_instead_of_examples() -> None:
    task = build(weight=lambda batch: batch[0].numel())
    assert task.loss(next(task.batches(5)))[1] == 15.0


@pytest.mark.parametrize("units", [0, -1.0, math.nan, math.inf, torch.tensor(0)])
def test_a_weight_that_is_no_number_of_units_is_refused(units: float) -> None:
    task = build(weight=lambda batch: units)
    with pytest.raises(TaskError, match=f"positive and finite, got {float(units)}"):
        task.weigh(next(task.batches(5)))


def test_a_batch_that_cannot_be_counted_asks_for_a_weight() -> None:
    task = build(dataset=["a", "b"], collate_fn=" ".join)
    with pytest.raises(TaskError, match=r"batch of type str\. Pass `weight=`"):
        task.weigh(next(task.batches(2)))


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (None, "got None"),
        (1.5, "got 1.5"),
        (torch.ones(4), r"got a torch.float32 tensor of shape \(4,\)"),
        (torch.ones(1), r"got a torch.float32 tensor of shape \(1,\)"),
        (torch.ones((), dtype=torch.complex128), r"got a torch.complex128 tensor of shape \(\)"),
        (torch.ones(()), r"got tensor\(1\..*\) without one"),
    ],
)
def test_what_is_no_scalar_with_a_graph_is_refused(value: Any, match: str) -> None:
    task = build(loss=lambda model, batch: value)
    with pytest.raises(TaskError, match=match):
        task.loss(next(task.batches(4)))


# Steps.


def test_step_is_the_users_loop() -> None:
    """One step of SGD on theta with loss (theta - 3)^2/2: theta moves by lr (3 - theta)."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    task = build(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.5),
        loss=lambda model, batch: (model.weight - 3).square().sum() / 2,
    )
    loss = task.step(next(task.batches(2)))
    assert loss.item() == 2.0
    assert not loss.requires_grad
    assert model.weight.item() == 2.0
    task.step(next(task.batches(2)))  # gradients do not pile up
    assert model.weight.item() == 2.5


def test_step_clips_as_the_user_does() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    task = build(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.5),
        loss=lambda model, batch: 100 * model.weight.sum(),
        clip_grad_norm=1.0,
    )
    task.step(next(task.batches(2)))
    assert model.weight.item() == pytest.approx(0.5, rel=1e-6)


# Facts.


def test_facts_describe_the_task() -> None:
    facts = regression(small_net(), name="mine").facts()
    assert (facts.name, facts.parameters, facts.examples, facts.batch_size) == ("mine", 21, 24, 4)
    assert (facts.optimizer, facts.learning_rate, facts.num_workers) == ("SGD", 0.05, 0)
    assert facts.warnings == ()


def test_tied_parameters_count_once() -> None:
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, layer, nn.Linear(3, 1))
    assert regression(model).facts().parameters == 12 + 4


def test_facts_hold_the_first_groups_finite_numbers_only() -> None:
    hyperparameters = two_groups().facts().hyperparameters
    assert hyperparameters == {
        "lr": 0.01,
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.0,
    }


def test_a_tensor_learning_rate_is_a_number_in_the_facts() -> None:
    model = small_net()
    facts = regression(model, sgd(model, lr=torch.tensor(0.25))).facts()
    assert (facts.learning_rate, facts.hyperparameters["lr"]) == (0.25, 0.25)


def test_infinite_settings_are_left_out_of_the_facts() -> None:
    model = small_net()
    optimizer = sgd(model)
    optimizer.param_groups[0]["max_norm"] = math.inf
    assert "max_norm" not in regression(model, optimizer).facts().hyperparameters


def test_check_looks_once_and_remembers() -> None:
    calls = []
    note = calls.append  # the list itself would be put back

    def loss(model: nn.Module, batch: Any) -> Tensor:
        note(1)
        return F.mse_loss(model(batch[0]), batch[1])

    task = build(loss=loss)
    assert task.check() == task.check() == task.facts().warnings
    assert len(calls) == 2
