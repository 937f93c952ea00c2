"""The work that is timed and weighed: real batches of a task, and steps that move nothing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from rightbatch.errors import TaskError
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
    given = task.source.loader_options  # what is left out is refused without workers
    options = {key: value for key, value in given.items() if key == "pin_memory"}
    source = replace(task.source, num_workers=0, loader_options=options)
    for batch in source.loader(size, seed=seed, epochs=None):
        count = examples_in(batch)
        if task._weight is None and count is not None and count != size:
            raise TaskError(
                f"a batch must hold the examples asked for, got {count} rows for {size} examples. "
                "If one example makes several rows, pass `weight=` to say how many units a batch "
                "has."
            )
        yield to_device(batch, task.device)


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


def bytes_in(batch: Any) -> int:
    """Count the bytes of a batch's tensors.

    Example:
        >>> bytes_in({"image": torch.zeros(3, 8, dtype=torch.uint8), "name": ["a", "b", "c"]})
        24
    """
    if isinstance(batch, Tensor):
        return batch.numel() * batch.element_size()
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
        return sum(bytes_in(part) for part in batch)
    return 0
