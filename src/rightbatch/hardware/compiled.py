"""Tasks with compiled code in them: found, and compiled before anything is counted.

A compiled step fuses operations, so it holds less than the same step taken operation by operation;
and the compiler itself takes memory and time, once, which no batch size is to be charged for.
"""

from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

from torch import nn

from rightbatch.hardware.meters import reclaim
from rightbatch.hardware.templates import SIZES
from rightbatch.hardware.workload import start_over, take_step, what_runs
from rightbatch.task import Task
from rightbatch.task.reachable import reachable


def is_compiled(task: Task) -> bool:
    """Whether any of a task's code was given to ``torch.compile``: model, part, loss or optimizer.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(1, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> task = Task(model, optimizer, torch.zeros(9, 1), lambda m, x: m(x).mean())
        >>> is_compiled(task)
        False
        >>> model.compile(backend="eager")
        >>> is_compiled(task)
        True
    """
    return any(map(_is_compiled, reachable(what_runs(task))))


def _is_compiled(thing: Any) -> bool:
    if isinstance(thing, nn.Module):
        return thing._compiled_call_impl is not None
    if not isinstance(thing, FunctionType):
        return False
    # A model that was compiled as a whole holds such a function too. What is never to be compiled,
    # such as torch's own checkpoint, is wrapped in the same way and says so.
    own = vars(thing)
    return "_torchdynamo_orig_callable" in own and not own.get("_torchdynamo_disable", False)


def compile_ahead(task: Task, batches_of: Callable[[int], Iterator[Any]]) -> None:
    """Take a step at each of two small sizes: from the second on, code serves any size.

    Weights move; gradients and the optimizer's state are dropped, where there was none.

    Args:
        task: What is trained.
        batches_of: Makes batches of so many examples, on the task's device.
    """
    had_state = bool(task.optimizer.state)
    for size in SIZES:
        batch = next(batches_of(min(size, task.max_batch_size or size)))
        take_step(task, lambda batch=batch: batch)
    start_over(task, keep_state=had_state)
    reclaim(task.device)
