"""Steps of one rank alone: a data-parallel model without its wrapper."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

from torch import nn

from rightbatch.task import Task


@final
class OneRank(nn.Module):
    """A model as its loss knows it from a data-parallel wrapper, and nothing is averaged.

    Example:
        >>> inner = nn.Linear(2, 3)
        >>> model = OneRank(inner)
        >>> with model.no_sync():
        ...     model.module is inner
        True
    """

    require_backward_grad_sync = False

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Call the model."""
        return self.module(*inputs, **named)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Do nothing: there is no other rank."""
        yield


def without_ranks(task: Task) -> tuple[Task, int]:
    """Take a data-parallel wrapper off, and count the copies of gradients that wrappers keep.

    Args:
        task: What is trained; left as it is. A wrapper around a part of the model stays on.

    Returns:
        The task of one rank, and bytes.
    """
    wrappers = [
        m for m in task.model.modules() if isinstance(m, nn.parallel.DistributedDataParallel)
    ]
    copied = [
        parameter.nbytes
        for wrapper in wrappers
        if not wrapper.gradient_as_bucket_view
        for parameter in wrapper.parameters()
        if parameter.requires_grad
    ]
    if wrappers and wrappers[0] is task.model:
        task = copy.copy(task)
        task.model = OneRank(wrappers[0].module)
    return task, sum(copied)
