"""What code refers to and may so reach, from the functions and objects that are called.

function   -->  closure, defaults, attributes, the globals that it names
object     -->  attributes, slots; of a class that no library wrote, its methods too
container  -->  what it holds
tensor     -->  gradient, attributes, hooks
"""

import dis
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from types import (
    BuiltinFunctionType,
    CellType,
    CodeType,
    FunctionType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

EMPTY: Final = object()  # what a variable holds before it is assigned

_MOST = 200_000  # things; a loss that refers to more holds a data set
_PLAIN = (str, bytes, int, float, complex, bool, type(None), np.generic)
_UNSEEN = (*_PLAIN, type, ModuleType, CodeType, BuiltinFunctionType)
_LIBRARIES = frozenset((*sys.stdlib_module_names, "torch", "numpy"))
_OF_GLOBALS = frozenset(
    ("LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
)
_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def reachable(
    roots: Iterable[Any],
    *,
    closed: tuple[type, ...] = (),
    skipped: Callable[[Any], bool] | None = None,
) -> Iterator[Any]:
    """Yield whatever some objects refer to, each once, the nearest first; the roots themselves too.

    Not followed are classes (but for the methods of an object's own), modules of Python, what a
    library keeps in its globals, and what only an interpreter or a driver sees.

    Args:
        roots: Functions and objects whose code runs.
        closed: Types of things that are yielded, and not looked into.
        skipped: Whether a thing is neither yielded nor looked into.

    Example:
        >>> weights = Tensor([1.0, 2.0])
        >>> def loss(outputs):
        ...     return (weights * outputs).sum()
        >>> [thing for thing in reachable([loss]) if isinstance(thing, Tensor)]
        [tensor([1., 2.])]
    """
    known: dict[int, Any] = {}  # the things themselves too, so that their ids stay theirs
    waiting = deque(roots)
    while waiting and len(known) < _MOST:
        thing = waiting.popleft()
        if id(thing) in known or not is_followed(thing):
            continue
        known[id(thing)] = thing
        if skipped is not None and skipped(thing):
            continue
        yield thing
        if not isinstance(thing, closed):
            waiting.extend(parts(thing))


def parts(thing: Any) -> list[Any]:
    """List what a thing refers to and its code may reach."""
    if isinstance(thing, Tensor):
        if isinstance(thing, FakeTensor):
            return [thing.grad] if thing.is_leaf else []
        own = [getattr(thing, name, None) for name in ("__dict__", *_HOOKS)]
        return [thing.grad, *own] if thing.is_leaf else own
    if isinstance(thing, dict):
        return list(thing.values())
    if isinstance(thing, list | tuple | set | frozenset | deque):
        return list(thing)
    if isinstance(thing, CellType):
        return [content(thing)]
    if isinstance(thing, MethodType):
        return [thing.__self__, thing.__func__]
    if isinstance(thing, FunctionType):
        inner = [thing.__closure__, thing.__defaults__, thing.__kwdefaults__, thing.__dict__]
        return [*inner, *named(thing).values()]
    if isinstance(thing, staticmethod | classmethod):
        return [thing.__func__]
    if isinstance(thing, property):
        return [thing.fget, thing.fset]
    if isinstance(thing, partial):
        return [thing.func, thing.args, thing.keywords]
    own = [getattr(thing, "__dict__", None), *_of_classes(thing)]
    if isinstance(thing, torch.jit.ScriptModule):  # keeps them out of Python's sight
        return [*own, *thing.parameters(), *thing.buffers()]
    return own


def is_followed(thing: Any) -> bool:
    """Whether a thing may refer to others, or be a tensor."""
    try:
        return not isinstance(thing, _UNSEEN)
    except Exception:  # some proxies raise whatever is asked of them
        return False


def content(cell: CellType) -> Any:
    """Return what a variable of a closure holds, or `EMPTY`."""
    try:
        return cell.cell_contents
    except ValueError:
        return EMPTY


def named(function: FunctionType) -> dict[str, Any]:
    """Return the globals that a function of the task names, by their names."""
    if _is_of_library(function.__module__):
        return {}
    space = function.__globals__
    return {name: space[name] for name in _global_names(function.__code__) if name in space}


@lru_cache(maxsize=4096)
def _global_names(code: CodeType) -> frozenset[str]:
    names: set[str] = set()
    codes = [code]
    while codes:
        code = codes.pop()
        # `co_names` has attributes as well: `batch.data` names no global `data`.
        if code.co_names:
            steps = dis.get_instructions(code)
            names.update(step.argval for step in steps if step.opname in _OF_GLOBALS)
        codes += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
    return frozenset(names)


def _of_classes(thing: Any) -> list[Any]:
    """List what an object has by its class: slots, and the methods that no library wrote."""
    found: list[Any] = []
    for kind in type(thing).__mro__:
        if not _is_of_library(kind.__module__):
            found += kind.__dict__.values()
    return [*found, *(getattr(thing, slot.__name__, None) for slot in slots_of(thing))]


def slots_of(thing: Any) -> list[MemberDescriptorType]:
    """List the attributes that an object keeps outside of its dictionary.

    Example:
        >>> class Counter:
        ...     __slots__ = ("steps",)
        >>> [slot.__name__ for slot in slots_of(Counter())]
        ['steps']
    """
    return [
        slot
        for kind in type(thing).__mro__
        if "__slots__" in kind.__dict__ and not _is_of_library(kind.__module__)
        for slot in kind.__dict__.values()
        if isinstance(slot, MemberDescriptorType)
    ]


def _is_of_library(module: str | None) -> bool:
    return (module or "").partition(".")[0] in _LIBRARIES
