"""The work that is timed and weighed: real batches of a task, and steps that move nothing."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import FunctionType, MethodType
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer

from rightbatch.errors import TaskError
from rightbatch.hardware.live_bytes import LiveBytes
from rightbatch.task import Task
from rightbatch.task.data import examples_in, to_device
from rightbatch.task.reachable import reachable
from rightbatch.task.storages import stored_parts

NO_CAP = 2**20  # examples; for a stream, where nothing else ends the search
_STILL = 1e-6


def batches_in_process(task: Task, size: int, *, seed: int) -> Iterator[Any]:
    """Yield full batches on the task's device, loaded here and not by the task's workers.

    Starting worker processes takes longer than most steps, so they are left out wherever
    loading is not what is measured.

    Raises:
        TaskError: If a batch has another size than asked for.
    """
    for batch in host_batches(task, size, seed=seed):
        count = examples_in(batch)
        if task._weight is None and count is not None and count != size:
            raise TaskError(
                f"a batch must hold the examples asked for, got {count} rows for {size} examples. "
                "If one example makes several rows, pass `weight=` to say how many units a batch "
                "has."
            )
        yield to_device(batch, task.device)


def host_batches(task: Task, size: int, *, seed: int) -> Iterator[Any]:
    """Yield full batches as they are collated, loaded here, without end."""
    given = task.source.loader_options  # what is left out is refused without workers
    options = {key: value for key, value in given.items() if key == "pin_memory"}
    source = replace(task.source, num_workers=0, loader_options=options)
    yield from source.loader(size, seed=seed, epochs=None)


def batches_to_try(
    task: Task, size: int, *, worst_case: Callable[[int], Any] | None, seed: int
) -> Iterator[Any]:
    """Yield the batches of a try on the task's device, without end.

    Args:
        task: What is trained.
        size: Examples.
        worst_case: Makes the largest batch of so many examples, on the host; ``None``: batches are
            drawn from the data.
        seed: Of the shuffle.
    """
    if worst_case is None:
        yield from batches_in_process(task, size, seed=seed)
    while worst_case is not None:
        yield to_device(worst_case(size), task.device)


def take_step(task: Task, next_batch: Callable[[], Any], accumulation_steps: int = 1) -> None:
    """Take one optimizer step as the user's loop would, over one or several micro-batches.

    Args:
        task: What is trained.
        next_batch: Makes the next micro-batch, on the task's device.
        accumulation_steps: Backward passes before the optimizer's step.
    """
    if accumulation_steps == 1:
        task.step(next_batch())
        return
    task.optimizer.zero_grad(set_to_none=True)
    for _ in range(accumulation_steps):
        loss, _ = task.loss(next_batch())
        (loss / accumulation_steps).backward()
    if task.clip_grad_norm is not None:
        nn.utils.clip_grad_norm_(task.model.parameters(), task.clip_grad_norm)
    task.optimizer.step()


def start_over(task: Task, *, keep_state: bool) -> None:
    """Drop what steps have made: gradients, and the optimizer's state where there was none before.

    Args:
        task: Its weights stay where the steps moved them.
        keep_state: Whether the optimizer had state before.
    """
    task.optimizer.zero_grad(set_to_none=True)
    if not keep_state:
        task.optimizer.state.clear()  # half of it may have been made


def prefetched_batches(task: Task) -> int:
    """Count the batches that the task's loader holds ready while a step is computed."""
    each = task.source.loader_options.get("prefetch_factor") or 2  # 2 is torch's default
    return task.num_workers * each


def hold_still(optimizer: Optimizer) -> None:
    """Turn the rates down to a millionth, so that measuring cannot make the weights diverge.

    The arithmetic of a step, and so its time and memory, stays the same; but today's rate is
    too high for a batch of one, and numbers that are NaN or denormal take another time.
    `Task.preserved` puts the rates back.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * _STILL


def held_bytes(task: Task) -> int:
    """Count the bytes that training holds before the first step: see `held_tensors`.

    Example:
        A weight of 4 bytes, and what the loss refers to:

        >>> import torch
        >>> model, classes = torch.nn.Linear(1, 1, bias=False), torch.ones(10)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> task = Task(model, optimizer, torch.zeros(9, 1), lambda m, x: (m(x) * classes).mean())
        >>> held_bytes(task)
        44
    """
    runs = what_runs(task)
    return LiveBytes(held_tensors(task, runs, data_tensors(task, runs))).bytes


def what_runs(task: Task) -> tuple[Any, ...]:
    """Name the objects whose code a training step runs, or that stay on the device meanwhile."""
    optimizer = task.optimizer
    # Also by themselves: a prediction takes them off.
    hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    runs = (task._loss, task._weight, task.model, optimizer, *hooks)
    # On a device of one's own the data set takes the memory of batches; the host's is another
    # matter, where it may be mapped, shared with workers, or larger than all that training needs.
    return runs if task.device.type == "cpu" else (*runs, task.source, task.evaluate)


def held_tensors(task: Task, roots: Iterable[Any], data: Iterable[Tensor] = ()) -> list[Tensor]:
    """List the tensors on a task's device that training holds between two steps.

    Parameters, buffers, optimizer state, and whatever else the task's code refers to: a teacher, an
    average of the model, the weights of classes. Not gradients, which a step makes and drops.

    Args:
        task: What is trained.
        roots: What to look into, `what_runs` as a rule.
        data: Found on the way, and no part of it: see `data_tensors`.
    """
    own = [*task.model.parameters(), *task.model.buffers(), *task.parameters]
    reached = _tensors_among(reachable(roots))
    gradients = (tensor.grad for tensor in (*own, *reached) if tensor.is_leaf)
    apart = set(map(id, (*gradients, *data)))
    held = [*own, *(tensor for tensor in reached if id(tensor) not in apart)]
    return [tensor for tensor in held if tensor.device == task.device]


def data_tensors(task: Task, roots: Iterable[Any]) -> list[Tensor]:
    """List what both code and a data set refer to, where the data set is in the host's memory."""
    if task.device.type != "cpu":
        return []
    # What code holds is no data, even if the data set calls it.
    source = _tensors_among(reachable([task.source], closed=(nn.Module, FunctionType, MethodType)))
    reached = _tensors_among(reachable(roots))
    others = set(map(id, without_storages_of(source, reached)))
    return [tensor for tensor in reached if id(tensor) not in others]


def without_storages_of(others: Iterable[Tensor], tensors: Iterable[Tensor]) -> list[Tensor]:
    """List the tensors that share no storage with any of some others.

    Example:
        >>> import torch
        >>> a, b = torch.zeros(3), torch.ones(2)
        >>> without_storages_of([a[1:]], [a, b])
        [tensor([1., 1.])]
    """
    taken = {storage for tensor in others for storage in _storages(tensor)}
    return [tensor for tensor in tensors if taken.isdisjoint(_storages(tensor))]


def _tensors_among(things: Iterable[Any]) -> list[Tensor]:
    tensors = (thing for thing in things if isinstance(thing, Tensor))
    return [tensor for tensor in tensors if not nn.parameter.is_lazy(tensor)]


def _storages(tensor: Tensor) -> list[int]:
    return [part.untyped_storage()._cdata for part in stored_parts(tensor)]


def bytes_in(batch: Any) -> int:
    """Count the bytes of the tensors and arrays of a batch, or of an example.

    Example:
        >>> import torch
        >>> bytes_in({"image": torch.zeros(3, 8, dtype=torch.uint8), "name": ["a", "b", "c"]})
        24
    """
    if isinstance(batch, Tensor):
        return batch.numel() * batch.element_size()
    if isinstance(batch, np.ndarray):
        return batch.nbytes
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        batch = [getattr(batch, part.name) for part in dataclasses.fields(batch)]
    if isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
        return sum(bytes_in(part) for part in batch)
    return 0
