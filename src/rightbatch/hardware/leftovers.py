"""What a task's code keeps for itself: found before tensors without numbers, cleaned of them after.

    loss, hooks, modules --what they refer to--> containers, attributes, variables: remembered
    afterwards           --those with a fake-->  get back what they held

A running mean in a criterion or a list of losses would otherwise hold a tensor without numbers, and
the next real loss would be one as well.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from rightbatch.task.kept import keep_references
from rightbatch.task.reachable import is_followed, parts, reachable
from rightbatch.task.storages import Restore


@contextmanager
def no_fakes_left(roots: Iterable[Any]) -> Iterator[None]:
    """Take fake tensors out of whatever some objects refer to, at the end of a ``with`` block.

    Containers, attributes and variables that then hold a fake get back what they held before; the
    others may have changed for reasons of their own, and stay. Looked into is what `reachable`
    finds; what a class keeps in its own attributes is not put back.

    Args:
        roots: Functions and objects whose code runs inside the block.

    Example:
        >>> from torch._subclasses.fake_tensor import FakeTensorMode
        >>> seen = [1]
        >>> def loss():
        ...     seen.append(Tensor(3))
        >>> with no_fakes_left([loss]), FakeTensorMode():
        ...     loss()
        >>> seen
        [1]
    """
    # The things themselves too, so that their ids stay theirs.
    known = {id(thing): (thing, _restorer(thing)) for thing in reachable(roots)}
    try:
        yield
    finally:
        # All are looked at before the first is put back: one may be reached through another.
        stained = [
            restore
            for thing, restore in known.values()
            if restore is not None and _holds_fake(thing, known)
        ]
        for restore in stained:
            restore()


def _restorer(thing: Any) -> Restore | None:
    """Remember what a thing refers to, where that can change."""
    if isinstance(thing, Tensor):
        return partial(setattr, thing, "grad", thing.grad) if thing.is_leaf else None
    return keep_references(thing)


def _holds_fake(thing: Any, known: dict[int, Any]) -> bool:
    """Whether a thing holds a fake, itself or in something that was not there before."""
    waiting, seen = parts(thing), set[int]()
    while waiting:
        part = waiting.pop()
        if id(part) not in known and id(part) not in seen and is_followed(part):
            if isinstance(part, FakeTensor):
                return True
            seen.add(id(part))
            waiting += parts(part)
    return False
