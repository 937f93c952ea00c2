"""What a task's code keeps for itself: found before tensors without numbers, cleaned of them after.

    loss, hooks, modules --what they refer to--> containers, attributes, variables: remembered
    afterwards           --those with a fake-->  get back what they held

A running mean in a criterion or a list of losses would otherwise hold a tensor without numbers, and
the next real loss would be one as well.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import CellType, FunctionType
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from rightbatch.task.reachable import EMPTY, content, is_followed, named, parts, reachable

Restore = Callable[[], None]


@contextmanager
def no_fakes_left(roots: Iterable[Any]) -> Iterator[None]:
    """Take fake tensors out of whatever some objects refer to, at the end of a ``with`` block.

    Containers, attributes and variables that then hold a fake get back what they held before; the
    others may have changed for reasons of their own, and stay. Looked into is what `reachable`
    finds; what an object keeps in slots, or a class in its own attributes, is not put back.

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
    """Remember what a thing holds, where that can change."""
    if isinstance(thing, Tensor):
        return partial(setattr, thing, "grad", thing.grad) if thing.is_leaf else None
    if isinstance(thing, CellType):
        before = content(thing)
        if before is EMPTY:
            return partial(delattr, thing, "cell_contents")
        return partial(setattr, thing, "cell_contents", before)
    if isinstance(thing, FunctionType):
        return partial(thing.__globals__.update, named(thing))
    if isinstance(thing, dict):
        return partial(_refill, thing, dict(thing), type(thing).update)
    if isinstance(thing, set):
        return partial(_refill, thing, set(thing), type(thing).update)
    if isinstance(thing, list | deque):
        return partial(_refill, thing, list(thing), type(thing).extend)
    return None


def _refill(holder: Any, before: Any, fill: Callable[[Any, Any], Any]) -> None:
    holder.clear()
    fill(holder, before)


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
