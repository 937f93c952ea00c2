"""Running a user's function that makes a task, and saying clearly what went wrong with it."""

import difflib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType, ModuleType

from rightbatch.errors import RightBatchError, TaskError, UnknownTask
from rightbatch.task import Task

_LISTED = 5  # names in one message


def task_from_file(place: str, function: str) -> Task:
    """Load a Python file and call its function.

    Args:
        place: Path of the file, as the user wrote it.
        function: Name of the function.

    Raises:
        UnknownTask: If there is no such file or function.
        TaskError: If the function fails or returns something else.
    """
    path = Path(place).expanduser()
    if not path.is_file():
        raise UnknownTask(
            f"`TASK` must name a file that exists, got {place!r}, which is "
            f"{'a folder' if path.is_dir() else 'not there'} (seen from {str(Path.cwd())!r})."
            f"{_near_files(path)}"
        )
    path = path.resolve()
    name = _module_name(path)
    with _importable(path.parent):
        return _call(_execute(name, path, place), path.parent, place, function)


def task_from_module(place: str, function: str) -> Task:
    """Import a module, also from the current folder, and call its function.

    Args:
        place: The module's dotted name.
        function: Name of the function.

    Raises:
        UnknownTask: If there is no such module or function.
        TaskError: If the function fails or returns something else.
    """
    folder = Path.cwd()
    with _importable(folder):
        try:
            with _reported(f"importing {place}", folder):
                module = importlib.import_module(place)
        except TaskError as error:
            missing = error.__cause__
            if not isinstance(missing, ModuleNotFoundError) or not _is_part(missing.name, place):
                raise
            raise UnknownTask(
                f"`TASK` must name a module that can be imported, got {place!r}: there is no "
                f"{missing.name!r} in {str(folder)!r} or among the installed packages. "
                "For a file, write path/to/file.py:function."
            ) from missing
        return _call(module, folder, place, function)


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Put a folder first on the import path; leave it there as the last one if all goes well."""
    entry = str(folder)
    importlib.invalidate_caches()  # files written since the last import are seen too
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:  # the first one is ours, unless the user's code removed it
            sys.path.remove(entry)
    if entry not in sys.path:
        sys.path.append(entry)


def _module_name(path: Path) -> str:
    """Name the module after its file where that hides nothing, so that workers can import it."""
    name = path.stem
    loaded = sys.modules.get(name)
    if loaded is not None:
        taken = getattr(loaded, "__file__", None) != str(path)
    else:
        found = importlib.util.find_spec(name) if name.isidentifier() else None
        taken = not name.isidentifier() or (found is not None and found.origin != str(path))
    # A file called random.py must not become everybody's `random`.
    return f"_rightbatch_task_{abs(hash(path)):x}" if taken else name


def _execute(name: str, path: Path, place: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UnknownTask(f"`TASK` must name a Python file ending in .py, got {place!r}.")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module  # where pickling and dataclasses look it up
    try:
        with _reported(f"loading {place}", path.parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
        raise
    return module


def _call(module: ModuleType, folder: Path, place: str, function: str) -> Task:
    make = getattr(module, function, None) if function else None
    if make is None:
        raise UnknownTask(
            f"{place!r} must have the function that `TASK` names, got {function!r}. "
            f"{_near_functions(module, function)}"
        )
    if not callable(make):
        raise TaskError(
            f"{place}:{function} must be a function that returns a rightbatch.Task, got "
            f"{_kind(make)}. Wrap it: def make_task(): return {function}"
        )
    with _reported(f"calling {place}:{function}", folder):
        task = make()
    if not isinstance(task, Task):
        raise TaskError(
            f"{place}:{function} must return a rightbatch.Task, got {_kind(task)}. "
            "End it with: return rightbatch.Task(model, optimizer, dataset, loss)"
        )
    return task


@contextmanager
def _reported(deed: str, folder: Path) -> Iterator[None]:
    """Turn what the user's code raises into one message, with the error as its cause."""
    try:
        yield
    except RightBatchError:
        raise  # a clear message already, most likely from Task itself
    except (Exception, SystemExit) as error:
        kind = type(error).__name__
        raise TaskError(
            f"{deed} failed with {kind}: {str(error) or 'no message'}{_line(error, folder)}. "
            "This comes from the code that `TASK` names; `--traceback` shows the whole way."
        ) from error


def _line(error: BaseException, folder: Path) -> str:
    """Name the last line of the user's that the error came through, if there is one."""
    lines = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(folder)
        and "site-packages" not in frame.filename
        and frame.filename != __file__
    ]
    return f" ({Path(lines[-1].filename).name}, line {lines[-1].lineno})" if lines else ""


def _is_part(name: str | None, place: str) -> bool:
    return name is not None and f"{place}.".startswith(f"{name}.")


def _kind(thing: object) -> str:
    return "None" if thing is None else f"an object of type {type(thing).__name__}"


def _near_functions(module: ModuleType, function: str) -> str:
    own = [
        name
        for name, value in vars(module).items()
        if isinstance(value, FunctionType)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    ]
    near = difflib.get_close_matches(function, own, n=3)
    if near:
        return f"Did you mean {' or '.join(near)}?"
    return f"Its functions are: {', '.join(own[:_LISTED])}." if own else "It has no function."


def _near_files(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    names = [other.name for other in path.parent.glob("*.py")]
    near = difflib.get_close_matches(path.name, names, n=3)
    return f" Did you mean {' or '.join(near)}?" if near else ""
