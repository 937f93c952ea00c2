"""The work that is timed and weighed: real batches of a task, and steps that move nothing."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from rightbatch.errors import TaskError
from rightbatch.hardware.live_bytes import LiveBytes
from rightbatch.task import Task
from rightbatch.task.data import examples_in, to_device

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


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def held_bytes(task: Task) -> int:
    """Count the bytes that training holds before the first step: weights, buffers, state."""
    states = [leaf for leaf in tree_leaves(dict(task.optimizer.state)) if isinstance(leaf, Tensor)]
    held = [*task.model.parameters(), *task.model.buffers(), *task.parameters, *states]
    return LiveBytes(held).bytes


def bytes_in(batch: Any) -> int:
    """Count the bytes of the tensors and arrays of a batch, or of an example.

    Example:
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
