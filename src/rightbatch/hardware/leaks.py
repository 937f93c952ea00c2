"""What is still alive after a step: a leak, a queue that fills, or neither.

A criterion may keep the features of its last batches. That rises as a leak does, and then no
further, so a rise is watched until it ends, or has gone on for longer than queues do.
"""

import gc
from contextlib import suppress
from itertools import pairwise
from typing import final

from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from rightbatch.task.storages import stored_parts

_SUSPECT = 5  # steps; fewer rises may come from lasting things that are made late
_CERTAIN = 12  # steps; a longer queue is called a leak, and more would rarely fit: heaps are cut up


@final
class LeftOver:
    """Bytes alive after each step.

    Args:
        least_bytes: More of them after a step than after the one before is a rise.

    Example:
        >>> left = LeftOver(least_bytes=10)
        >>> for alive in (0, 500, 600, 700, 800):
        ...     left.note(alive)
        >>> left.rises, left.is_suspect, left.is_certain
        (True, True, False)
        >>> left.note(805)
        >>> left.rises
        False
    """

    def __init__(self, least_bytes: float) -> None:
        self._least = least_bytes
        self._alive: list[int] = []

    def note(self, alive_bytes: int) -> None:
        """Take the next step's."""
        self._alive.append(alive_bytes)

    @property
    def rises(self) -> bool:
        """Whether every step but the first, which makes lasting state, left more."""
        return all(b - a > self._least for a, b in pairwise(self._alive[1:]))

    @property
    def is_suspect(self) -> bool:
        """Whether that was so often enough for a leak."""
        return len(self._alive) >= _SUSPECT and self.rises

    @property
    def is_certain(self) -> bool:
        """Whether it was too often for anything else."""
        return len(self._alive) >= _CERTAIN and self.rises


def tensor_bytes() -> int:
    """Count the bytes of all tensors that Python knows, each storage once.

    Tensors without numbers take no memory, and the tensors that another one wraps are known by
    themselves.

    Example:
        >>> import torch
        >>> before = tensor_bytes()
        >>> block = torch.zeros(1000, dtype=torch.uint8)
        >>> views = block[:500], block[500:]
        >>> tensor_bytes() - before
        1000
    """
    sizes: dict[int, int] = {}
    for thing in gc.get_objects():
        # By its type alone: a proxy of some library may do anything when it is asked.
        if issubclass(type(thing), Tensor) and _has_memory(thing):
            with suppress(RuntimeError, NotImplementedError):  # of a kind that has no storage
                for part in stored_parts(thing):
                    storage = part.untyped_storage()
                    sizes[storage._cdata] = storage.nbytes()
    return sum(sizes.values())


def _has_memory(tensor: Tensor) -> bool:
    return not (
        nn.parameter.is_lazy(tensor)
        or is_traceable_wrapper_subclass(tensor)
        or is_fake(tensor)
        or tensor.is_meta
    )
