"""Squared gradients of single examples of a task: by the rules, and else by their definition.

The definition differentiates one example at a time. It takes any model in which an example's loss
is its own; `torch.func` would take fewer, and is not needed for the few layers without a rule.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch.errors import MixesExamples, TaskError
from rightbatch.noise.per_example.uses import wide
from rightbatch.noise.per_example.watch import example_squares
from rightbatch.noise.precision import sum_dtype, widened
from rightbatch.task import Task
from rightbatch.task.data import examples_in
from rightbatch.task.preflight import mixes_examples


def per_example_grad_sq(task: Task, batch: Any, *, examples: int | None = None) -> Tensor:
    """Square the gradient of each example's own mean loss, over all trained parameters.

    One pass over the batch gives the layers with rules; what they leave is differentiated one
    example at a time. With dropout the two see masks of their own, each a fair draw. The task
    is put back bit for bit.

    Args:
        task: Its loss must be the mean over the batch's units, each unit of one example.
        batch: On the task's device.
        examples: Only the first so many; all by default.

    Returns:
        ``|g_i|^2``, shape [examples], in the `sum_dtype` of the gradients' device.

    Raises:
        MixesExamples: If BatchNorm in train mode mixes the examples.
        TaskError: If the batch cannot be cut into examples whose units add up.
        ValueError: If ``examples`` is not between 1 and the batch's.

    Example:
        >>> from rightbatch.task import supervised
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.ones_(model.weight)
        >>> data = [(torch.tensor([x]), torch.tensor([0.0])) for x in (1.0, 2.0)]
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> task = Task(model, optimizer, data, supervised(nn.functional.mse_loss))
        >>> batch = torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1)
        >>> per_example_grad_sq(task, batch).tolist()  # (2 x^2)^2
        [4.0, 64.0]
    """
    if mixes_examples(task.model):
        raise MixesExamples(
            "single examples must have gradients of their own, but BatchNorm in train mode mixes "
            "them. Use GroupNorm, or measure with rightbatch.measure_noise, whose unit is the "
            "micro-batch."
        )
    size = examples_in(batch)
    if not size:
        raise TaskError(
            f"`batch` must hold examples along the first dimension of its tensors, got "
            f"{type(batch).__name__} without any. Single examples are cut out of it."
        )
    count = size if examples is None else examples
    if not 1 <= count <= size:
        raise ValueError(
            f"`examples` must lie between 1 and the batch's {size}, got examples={examples!r}. "
            "It counts the first examples of the batch: leave it out for all."
        )
    units, total = _units(task, batch, size)
    with task.preserved(weights=False), torch.enable_grad():
        squares, uncovered = _by_rules(task, batch, size, count)
        scale = squares.new_tensor([(total / u) ** 2 for u in units[:count]])
        found = squares.sum(1) * scale
        if uncovered:
            parts = [task.parameters[index] for index in uncovered]
            found = found + torch.stack(
                [_by_definition(task, one_example(batch, i), parts) for i in range(count)]
            ).to(found.device)
    return found


def _units(task: Task, batch: Any, size: int) -> tuple[list[float], float]:
    units = [task.weigh(one_example(batch, index)) for index in range(size)]
    total = task.weigh(batch)
    if not math.isclose(sum(units), total, rel_tol=1e-6):
        raise TaskError(
            f"`weight` of a batch must be the sum over its examples, got {total!r} for the batch "
            f"and {sum(units)!r} for its {size} examples one by one. An example's own gradient is "
            "its part of the batch's, weighed by its units."
        )
    return units, total


def _by_rules(task: Task, batch: Any, size: int, count: int) -> tuple[Tensor, list[int]]:
    """Return contributions to the batch's loss, without those of parameters not understood."""
    parameters = task.parameters
    for parameter in parameters:
        parameter.grad = None
    with example_squares(task.model, parameters, examples=count, batch_size=size) as watched:
        loss, _ = task.loss(batch)
        loss.backward()
    uncovered = watched.uncovered()
    squares = watched.squares()[0]
    squares[:, uncovered] = 0.0
    return squares, uncovered


def _by_definition(task: Task, alone: Any, parameters: Sequence[nn.Parameter]) -> Tensor:
    for parameter in task.parameters:
        parameter.grad = None
    task.loss(alone)[0].backward()
    gradients = [wide(p.grad.detach()) for p in parameters if p.grad is not None]
    squares = [widened(torch.linalg.vector_norm(g.to_dense()).square()) for g in gradients]
    device = parameters[0].device
    none = torch.zeros((), dtype=sum_dtype(device), device=device)
    return sum((square.to(device) for square in squares), none)


def one_example(batch: Any, index: int) -> Any:
    """Cut one example out of a collated batch, as a batch of one.

    Example:
        >>> one_example({"x": torch.arange(3), "ids": ["a", "b", "c"], "step": 7}, 1)
        {'x': tensor([1]), 'ids': ['b'], 'step': 7}
    """
    size = examples_in(batch)

    def cut(part: Any) -> Any:
        if isinstance(part, Tensor):
            return part[index : index + 1] if part.dim() and len(part) == size else part
        if isinstance(part, Mapping):
            return {key: cut(value) for key, value in part.items()}
        if dataclasses.is_dataclass(part) and not isinstance(part, type):
            names = [field.name for field in dataclasses.fields(part) if field.init]
            return dataclasses.replace(part, **{name: cut(getattr(part, name)) for name in names})
        if isinstance(part, tuple) and hasattr(part, "_fields"):
            return type(part)(*(cut(item) for item in part))
        if isinstance(part, tuple | list):
            if any(examples_in(item) is not None for item in part):
                return type(part)(cut(item) for item in part)
            return part[index : index + 1] if len(part) == size else part
        return part

    return cut(batch)
