"""What a task's code keeps for itself: found before tensors without numbers, cleaned of them after.

    loss, hooks, modules --what they refer to--> containers, attributes, variables: remembered
    afterwards           --those with a fake-->  get back what they held

A running mean in a criterion or a list of losses would otherwise hold a tensor without numbers, and
the next real loss would be one as well.
"""

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

_MOST = 200_000  # things; a loss that refers to more holds a data set
_PLAIN = (str, bytes, int, float, complex, bool, type(None), np.ndarray, np.generic)
_UNSEEN = (*_PLAIN, type, ModuleType, CodeType, BuiltinFunctionType)
_LIBRARIES = frozenset((*sys.stdlib_module_names, "torch", "numpy"))
_EMPTY = object()  # what a variable holds before it is assigned

Restore = Callable[[], None]


@contextmanager
def no_fakes_left(roots: Iterable[Any]) -> Iterator[None]:
    """Take fake tensors out of whatever some objects refer to, at the end of a ``with`` block.

    Containers, attributes and variables that then hold a fake get back what they held before; the
    others may have changed for reasons of their own, and stay. Followed are closures, defaults, the
    globals that a function names, bound methods, partials, attributes, containers and gradients;
    not classes, slots, modules of Python, nor what a library keeps in its globals.

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
    known: dict[int, Any] = {}  # the things themselves too, so that their ids stay theirs
    waiting = deque(roots)
    while waiting and len(known) < _MOST:
        thing = waiting.popleft()
        if id(thing) not in known and _is_followed(thing):
            known[id(thing)] = (thing, _restorer(thing))
            waiting.extend(_parts(thing))
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


def _parts(thing: Any) -> list[Any]:
    """List what a thing refers to and its code may reach."""
    if isinstance(thing, Tensor):
        return [thing.grad] if thing.is_leaf else []
    if isinstance(thing, dict):
        return list(thing.values())
    if isinstance(thing, list | tuple | set | frozenset | deque):
        return list(thing)
    if isinstance(thing, CellType):
        return [_content(thing)]
    if isinstance(thing, MethodType):
        return [thing.__self__, thing.__func__]
    if isinstance(thing, FunctionType):
        inner = [thing.__closure__, thing.__defaults__, thing.__kwdefaults__]
        return [*inner, *_named(thing).values()]
    if isinstance(thing, partial):
        return [thing.func, thing.args, thing.keywords]
    return [getattr(thing, "__dict__", None)]


def _is_followed(thing: Any) -> bool:
    try:
        return not isinstance(thing, _UNSEEN)
    except Exception:  # some proxies raise whatever is asked of them
        return False


def _restorer(thing: Any) -> Restore | None:
    """Remember what a thing holds, where that can change."""
    if isinstance(thing, Tensor):
        return partial(setattr, thing, "grad", thing.grad) if thing.is_leaf else None
    if isinstance(thing, CellType):
        before = _content(thing)
        if before is _EMPTY:
            return partial(delattr, thing, "cell_contents")
        return partial(setattr, thing, "cell_contents", before)
    if isinstance(thing, FunctionType):
        return partial(thing.__globals__.update, _named(thing))
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


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _EMPTY


def _named(function: FunctionType) -> dict[str, Any]:
    """Return the globals that a function of the task names, by their names."""
    if (function.__module__ or "").partition(".")[0] in _LIBRARIES:
        return {}
    names: set[str] = set()
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
    space = function.__globals__
    return {name: space[name] for name in names if name in space}


def _holds_fake(thing: Any, known: dict[int, Any]) -> bool:
    """Whether a thing holds a fake, itself or in something that was not there before."""
    waiting, seen = _parts(thing), set[int]()
    while waiting:
        part = waiting.pop()
        if id(part) not in known and id(part) not in seen and _is_followed(part):
            if isinstance(part, FakeTensor):
                return True
            seen.add(id(part))
            waiting += _parts(part)
    return False
