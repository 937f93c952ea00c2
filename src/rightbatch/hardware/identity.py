"""What a thing is and does, as one digest that is the same in every process.

Two things with one digest run the same code on the same settings and shapes. The values of tensors
and arrays are left out, since they cost neither time nor memory; so are comments and line numbers.
"""

import copyreg
import dis
import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from threading import Lock, RLock
from types import (
    BuiltinFunctionType,
    CellType,
    CodeType,
    FunctionType,
    MappingProxyType,
    MethodType,
    ModuleType,
)
from typing import Any, final
from weakref import ref

import numpy as np
import torch
from torch import Tensor, nn

_SAYING_ITSELF = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    np.generic,
    torch.dtype,
    torch.device,
)
# What says nothing of the work but its type. A random state moves while it is drawn from.
_BARE = (torch.Generator, np.random.Generator, np.random.RandomState, type(Lock()), type(RLock()))
_MANY = 1000  # of a longer sequence so many elements are looked at, evenly spaced
_GLOBALS = ("LOAD_GLOBAL", "LOAD_NAME")
_FUNCTIONS = (FunctionType, staticmethod, classmethod, property)


class CannotIdentify(Exception):
    """Something inside cannot be taken apart, so nobody can tell whether it has changed."""


def identify(thing: Any) -> str:
    """Return a digest of what a thing is and does.

    Functions count with their code, closure, defaults, and the globals that they read; classes with
    their methods and plain attributes; objects with their attributes; code of installed packages
    with its name and the package's version.

    Raises:
        CannotIdentify: If it holds something that cannot be taken apart, such as an open file.

    Example:
        >>> def scaled(by):
        ...     return lambda x: by * x
        >>> identify(scaled(2)) == identify(scaled(2)), identify(scaled(2)) == identify(scaled(3))
        (True, False)
    """
    try:
        return _Identity().of(thing)
    except RecursionError as error:
        raise CannotIdentify(f"{type(thing).__name__} is nested too deeply") from error


@final
class _Identity:
    """One walk: each object is looked at once, and a cycle ends where it began."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[str, Any]] = {}  # holds the object, so that its id stays
        self._above: list[int] = []
        self._tensors: dict[int, int] = {}

    def of(self, thing: Any) -> str:
        if isinstance(thing, _SAYING_ITSELF):
            return f"{type(thing).__name__} {thing!r}"
        key = id(thing)
        if key in self._above:
            return f"above {self._above.index(key)}"
        if key not in self._known:
            self._above.append(key)
            parts = "\0".join(self._parts(thing))
            self._above.pop()
            self._known[key] = (hashlib.sha256(parts.encode()).hexdigest(), thing)
        return self._known[key][0]

    def _parts(self, thing: Any) -> Iterator[str]:
        yield _name_of(type(thing))
        if isinstance(thing, _BARE):
            return
        if isinstance(thing, Tensor | np.ndarray):
            yield from self._of_array(thing)
        elif isinstance(thing, bytes | bytearray | memoryview):
            yield str(len(thing))
            yield hashlib.sha256(bytes(thing[:_MANY])).hexdigest()
        elif isinstance(thing, type):
            yield from self._of_class(thing)
        elif isinstance(thing, nn.Module):
            yield self.of(type(thing))
            yield from self._named(vars(thing))
        elif isinstance(thing, dict | MappingProxyType):
            yield from self._named(thing)
        elif isinstance(thing, Sequence | AbstractSet) and type(thing).__module__ == "builtins":
            yield from self._elements(thing)
        else:
            yield from self._of_code(thing) if _is_code(thing) else self._of_object(thing)

    def _of_array(self, array: Tensor | np.ndarray[Any, Any]) -> Iterator[str]:
        yield f"{tuple(array.shape)} {array.dtype}"
        if isinstance(array, Tensor):
            order = self._tensors.setdefault(id(array), len(self._tensors))  # tied or not
            yield f"{array.device} {array.requires_grad} {array.layout} {order}"
            if array.layout is torch.strided:
                yield f"{array.stride()}"

    def _elements(self, things: Sequence[Any] | AbstractSet[Any]) -> Iterator[str]:
        if isinstance(things, AbstractSet):
            yield from sorted(map(self.of, things))
            return
        yield str(len(things))
        yield from map(self.of, _some_of(things))

    def _named(self, things: Mapping[Any, Any]) -> Iterator[str]:
        yield str(len(things))
        for name, value in _some_of(things.items()):
            if isinstance(name, str) and name.endswith("_hooks") and isinstance(value, Mapping):
                yield name  # its keys count all hooks that the process ever made
                yield from map(self.of, value.values())
            else:
                yield self.of(name)
                yield self.of(value)

    def _of_object(self, thing: Any) -> Iterator[str]:
        try:
            reducer = copyreg.dispatch_table.get(type(thing))
            reduced = reducer(thing) if reducer else thing.__reduce_ex__(5)
        except Exception as error:  # what the user's own code may raise
            raise CannotIdentify(f"{_name_of(type(thing))} cannot be taken apart") from error
        yield self.of(type(thing))
        parts = (reduced,) if isinstance(reduced, str) else reduced
        # The last parts iterate over the elements of what extends a list or a mapping.
        yield from (self.of(list(p) if isinstance(p, Iterator) else p) for p in parts)

    def _of_class(self, kind: type) -> Iterator[str]:
        for base in kind.__mro__:
            yield _name_of(base)
            if _package_of(base) is not None:
                continue
            for name, value in vars(base).items():
                if isinstance(value, _FUNCTIONS) or not name.startswith(("__", "_abc_")):
                    yield name
                    yield self.of(value)

    def _of_code(self, thing: Any) -> Iterator[str]:
        if isinstance(thing, CodeType):
            yield f"{thing.co_code.hex()} {thing.co_names} {thing.co_varnames} {thing.co_freevars}"
            yield from map(self.of, thing.co_consts)
        elif isinstance(thing, FunctionType):
            yield from self._of_function(thing)
        elif isinstance(thing, MethodType):
            yield from (self.of(thing.__func__), self.of(thing.__self__))
        elif isinstance(thing, staticmethod | classmethod):
            yield self.of(thing.__func__)
        elif isinstance(thing, property):
            yield from (self.of(f) for f in (thing.fget, thing.fset, thing.fdel))
        elif isinstance(thing, CellType):
            yield self.of(thing.cell_contents) if thing != CellType() else "empty"
        elif isinstance(thing, ref):
            yield self.of(thing())
        elif isinstance(thing, ModuleType):
            yield thing.__name__
            yield _file_of(thing)
        else:
            yield _name_of(thing)
            yield self.of(getattr(thing, "__self__", None))

    def _of_function(self, function: FunctionType) -> Iterator[str]:
        yield _name_of(function)
        yield from map(self.of, function.__closure__ or ())
        yield from (self.of(function.__defaults__), self.of(function.__kwdefaults__))
        if _package_of(function) is not None:
            return
        yield self.of(function.__code__)
        yield self.of(vars(function))
        for name in sorted(_globals_read(function.__code__)):
            if name in function.__globals__:
                yield name
                yield self.of(function.__globals__[name])


def _some_of(things: Iterable[Any]) -> list[Any]:
    listed = list(things)
    return listed[:: len(listed) // _MANY + 1]


def _is_code(thing: Any) -> bool:
    kinds = (*_FUNCTIONS, CodeType, MethodType, CellType, ref, ModuleType, BuiltinFunctionType)
    return isinstance(thing, kinds) or type(thing).__name__ in (
        "member_descriptor",
        "getset_descriptor",
        "method_descriptor",
        "wrapper_descriptor",
        "method-wrapper",
    )


def _globals_read(code: CodeType) -> set[str]:
    names = {i.argval for i in dis.get_instructions(code) if i.opname in _GLOBALS}
    inner = (part for part in code.co_consts if isinstance(part, CodeType))
    return names.union(*map(_globals_read, inner))


def _name_of(thing: Any) -> str:
    name = f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', '')}"
    package = _package_of(thing)
    version = getattr(package, "__version__", None)
    return f"{name} {version}" if version else name


def _package_of(thing: Any) -> ModuleType | None:
    """The installed package, or part of Python, that a class or function comes from, if any."""
    name = getattr(thing, "__module__", None)
    return _installed(name) if isinstance(name, str) else None


def _installed(name: str) -> ModuleType | None:
    """The package that a module is part of, unless it is the user's own."""
    top = name.split(".")[0]
    package = sys.modules.get(top)
    if top in sys.stdlib_module_names and top != "__main__":
        return package
    files = (getattr(module, "__file__", None) for module in (package, sys.modules.get(name)))
    parts = {part for file in files if file for part in Path(file).parts}
    return package if {"site-packages", "dist-packages"} & parts else None


def _file_of(module: ModuleType) -> str:
    """Its version if it is installed; else its text, since its functions are not followed."""
    package = _installed(module.__name__)
    if package is not None:
        return str(getattr(package, "__version__", ""))
    try:
        return hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest()
    except (AttributeError, OSError) as error:
        raise CannotIdentify(f"module {module.__name__} has no file") from error
