"""Shared footing of the range test and the race: set a rate, take a step, know a diverged one."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from rightbatch._time import Deadline
from rightbatch.errors import TaskError
from rightbatch.task import Task

_PILOT_STEPS = 4


def rate_setter(optimizer: Optimizer) -> Callable[[float], None]:
    """Make a function that sets the first group's rate and moves the others in proportion.

    Example:
        >>> slow, fast = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
        >>> optimizer = torch.optim.SGD([{"params": slow, "lr": 0.1}, {"params": fast, "lr": 0.5}])
        >>> rate_setter(optimizer)(0.2)
        >>> [group["lr"] for group in optimizer.param_groups]
        [0.2, 1.0]
    """
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    ratios = [rate / rates[0] for rate in rates]

    def set_rate(learning_rate: float) -> None:
        for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
            if isinstance(group["lr"], Tensor):  # a captured or compiled step reads this tensor
                group["lr"].fill_(learning_rate * ratio)
            else:
                group["lr"] = learning_rate * ratio

    return set_rate


def seed_everything(seed: int) -> None:
    """Seed every global random source, so that dropout and augmentation repeat themselves.

    Only ever called inside ``task.preserved()``, which puts the sources back.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # torch.manual_seed would also queue a seeding of every accelerator that is not in use yet.
    torch.default_generator.manual_seed(seed)
    for kind in (torch.cuda, torch.xpu):
        if kind.is_initialized():
            kind.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


def loss_or_nan(task: Task, compute: Callable[[], Tensor]) -> float:
    """Return a loss; NaN where it cannot be computed because the weights are no longer finite.

    A loss may well raise on NaN outputs (a distribution that validates its arguments, a matrix
    that cannot be factorised). At finite weights its errors are the user's to see.
    """
    try:
        return compute().item()
    except Exception:
        if _weights_are_finite(task):
            raise
        return math.nan


def take_step(task: Task, batch: Any) -> float:
    """Take an optimizer step; return the loss before it, NaN if training has diverged."""
    return loss_or_nan(task, lambda: task.step(batch))


def evaluate_loss(task: Task, batch: Any) -> float:
    """Return the loss without a step, NaN if training has diverged."""
    return loss_or_nan(task, lambda: task.loss(batch)[0].detach())


@torch.no_grad()
def _weights_are_finite(task: Task) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in task.parameters)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long things take, in seconds."""

    start: float  # until the first batch: worker processes, the shuffle
    load: float  # per further batch
    step: float  # per optimizer step, the batch being there
    forward: float  # per loss without a step

    @property
    def loaded_step(self) -> float:
        """A step and the loading of its batch."""
        return self.load + self.step


def measure_pace(
    task: Task, size: int, *, learning_rate: float, seed: int, deadline: Deadline
) -> Pace:
    """Time a few steps of ``size`` examples, and put the world back.

    The first step warms up and does not count, unless the time ends with it.
    """
    clock = deadline.clock
    loads, steps, forwards = [], [], []
    with task.preserved():
        seed_everything(seed)
        rate_setter(task.optimizer)(learning_rate)
        begun = clock()
        batches = task.batches(size, seed=seed)
        batch = next(batches)
        start = clock() - begun
        for _ in range(_PILOT_STEPS):
            laps = [clock()]
            for work, seconds in ((take_step, steps), (evaluate_loss, forwards)):
                work(task, batch)
                laps.append(clock())
                seconds.append(laps[-1] - laps[-2])
            batch = next(batches)
            loads.append(clock() - laps[-1])
            if deadline.passed():
                break
    load, step, forward = (median(times[1:] or times) for times in (loads, steps, forwards))
    return Pace(start=start, load=load, step=max(step, 1e-9), forward=forward)


def checked_batch_size(task: Task, batch_size: int | None) -> int:
    """Return the batch size to measure at: the one asked for, or today's.

    Raises:
        TaskError: If it is not a whole number from 1 to the size of the data set.
    """
    size = task.default_batch_size if batch_size is None else batch_size
    if isinstance(size, bool) or int(size) != size or size < 1:
        raise TaskError(f"`batch_size` must be a whole number of at least 1, got {size!r}.")
    if task.max_batch_size is not None and size > task.max_batch_size:
        raise TaskError(
            f"`batch_size` must not exceed the data set or `max_batch_size`, got "
            f"batch_size={size!r} and a cap of {task.max_batch_size}. A batch that holds an "
            "example twice has less noise than it claims: measure at a smaller size."
        )
    return int(size)
