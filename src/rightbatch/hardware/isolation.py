"""Try batch sizes in processes of their own, so that nothing that happens there happens here.

    here                         there
    pickle the task once
    start, wait, or kill   -->   limit the memory, take the steps
    read the answer        <--   or die

A new interpreter is started for every try: no state, no cached memory and no poisoned device
context of an earlier one. It does not import the caller's main module, so scripts need no guard.
"""

import json
import math
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

import cloudpickle
import torch
from torch import nn
from torch.optim import Optimizer

from rightbatch.errors import TaskError
from rightbatch.hardware.child import Answer, Job
from rightbatch.hardware.meters import reclaim
from rightbatch.hardware.outcomes import classify_text
from rightbatch.hardware.settings import settings_here
from rightbatch.hardware.workload import what_runs
from rightbatch.task import Task
from rightbatch.task.reachable import reachable

# Not as a module (-m), which would look for everything in the working folder first.
_CHILD = (
    "import json, pathlib, sys; folder = pathlib.Path(sys.argv[1]); "
    "sys.path[:] = json.loads((folder / 'job.json').read_text())['paths']; "
    "from rightbatch.hardware.child import main; main(folder)"
)
_START_SECONDS = 60.0  # to import torch and build the task, on a busy machine
_MOST_SECONDS = 3600.0  # for a few steps, where no time was given: then it hangs
_STDERR_BYTES = 4000
_MOST_STEPS = 12
_LONG_STEPS = 50  # a heap is cut up further for as long: where they are quick, take them all
_PATIENCE_SECONDS, _PATIENCE_SHARE = 20.0, 0.1  # of the time there is


class CannotIsolate(TaskError):
    """The task cannot be sent to another process."""


@final
class Isolated:
    """Tries of one task, each in a process of its own; a context manager that leaves nothing.

    Args:
        task: What is trained; it is pickled once, and never used here.
        worst_case: Makes the largest batch of so many examples, on the host; ``None``: batches are
            drawn from the data.
        seed: Of the shuffle and of the random state in the steps.
        enforced: Whether the system refuses more than the budget. Otherwise it is only compared.

    Raises:
        CannotIsolate: If the task cannot be pickled, or would not arrive as it is.
    """

    def __init__(
        self,
        task: Task,
        worst_case: Callable[[int], Any] | None = None,
        *,
        seed: int = 0,
        enforced: bool = True,
        accumulation_steps: int = 1,
    ) -> None:
        _check_it_arrives(task)
        self._job = Job(
            batch_size=1,
            steps=3,
            most_steps=_MOST_STEPS if task.device.type == "cpu" else 3,
            long_steps=_LONG_STEPS if task.device.type == "cpu" else 3,
            patience_seconds=_PATIENCE_SECONDS,
            accumulation_steps=accumulation_steps,
            budget_bytes=0,
            loose_bytes=0,
            enforced=enforced,
            seconds=None,
            seed=seed,
            threads=torch.get_num_threads(),
            paths=tuple(sys.path),
            settings=settings_here(),
        )
        self._device = task.device
        self._folder = tempfile.TemporaryDirectory(prefix="rightbatch-")
        path = Path(self._folder.name)
        try:
            _pickle((task, worst_case), path / "task.pickle")
        except BaseException:
            self._folder.cleanup()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._folder.cleanup()

    def try_size(
        self,
        size: int,
        *,
        budget_bytes: int,
        loose_bytes: int = 0,
        steps: int = 3,
        seconds: float = math.inf,
    ) -> Answer:
        """Take some steps at one batch size, there.

        Args:
            size: Examples.
            budget_bytes: Above what is in use once the task is there.
            loose_bytes: Where the budget does not suffice, a few steps follow under this limit,
                only to learn the peak. By default none do.
            steps: Optimizer steps at least; on a CPU more, up to 12, while the peak still grows,
                and up to 50 within twenty seconds or a tenth of ``seconds``.
            seconds: To be spent on the steps; afterwards the process is killed. By default it is
                killed after an hour.

        Returns:
            The outcome: "ok", "oom", "thrash" (the allocator ran in circles), "limit" (of a kernel
            or an index), "slow" (given up: it would have taken too long), "leak" (more memory after
            every step), "killed", or "hang" (killed by us).

        Raises:
            CannotIsolate: If the task itself, without a batch, has no room beside this process, or
                is not ready for a first step in another.
            Exception: What the task's own code raised, where it is not about memory.
        """
        reclaim(self._device)  # what is only cached here would take room there
        folder = Path(self._folder.name)
        for name in ("answer.json", "error.pickle"):
            (folder / name).unlink(missing_ok=True)
        limited = math.isfinite(seconds)
        job = replace(
            self._job,
            batch_size=size,
            budget_bytes=budget_bytes,
            loose_bytes=loose_bytes,
            steps=steps,
            most_steps=max(steps, self._job.most_steps),
            patience_seconds=min(_PATIENCE_SECONDS, _PATIENCE_SHARE * seconds),
            seconds=seconds if limited else None,
        )
        (folder / "job.json").write_text(json.dumps(asdict(job)))
        timeout = _START_SECONDS + (2 * seconds if limited else _MOST_SECONDS)
        code, words = _run([sys.executable, "-P", "-c", _CHILD, str(folder)], timeout)
        try:
            answer = Answer(**json.loads((folder / "answer.json").read_text()))
        except FileNotFoundError:
            if (folder / "job.json").exists():
                raise _never_ready(code, words) from None
            return _died(code, words)
        if answer.outcome == "crowded":
            raise CannotIsolate(
                "there must be room for the task a second time to try it in a process of its own, "
                f"got {answer.note:.200}. This process holds the first: pass isolate=False."
            )
        if answer.outcome == "unready":
            raise CannotIsolate(
                "a task must be ready for its first step in a process of its own too, got "
                f"{answer.note:.200}. Let what is pickled be made again, or pass isolate=False."
            )
        if answer.outcome == "error":
            error = _their_error(folder, answer.note)
            error.add_note(f"In the process of its own:\n{answer.trace.rstrip()}")
            raise error
        return answer


def _check_it_arrives(task: Task) -> None:
    """Refuse what pickles, and is something else when it comes back."""
    for thing in reachable(what_runs(task)):
        if isinstance(thing, nn.parallel.DistributedDataParallel):
            raise CannotIsolate(
                "a task must arrive in another process as it is, got a DistributedDataParallel as "
                "a part, and no process group is there. Wrap the whole model, last of all, or pass "
                "isolate=False."
            )
        if isinstance(thing, nn.Module) and thing._compiled_call_impl is not None:
            raise CannotIsolate(
                "a task must arrive in another process as it is, got a "
                f"{type(thing).__name__} compiled in place, of which torch sends the module alone. "
                "Use torch.compile(module) instead, or pass isolate=False."
            )


class _Pickler(cloudpickle.Pickler):
    """Takes all of an optimizer along.

    PyTorch leaves an optimizer's hooks out, and every attribute that its class or a user has added.
    """

    def reducer_override(self, obj: Any) -> Any:
        """Pickle an optimizer by all of its attributes, unless its class has a way of its own."""
        if not isinstance(obj, Optimizer) or type(obj).__getstate__ is not Optimizer.__getstate__:
            return super().reducer_override(obj)
        make, arguments, _, *rest = obj.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        state = dict(vars(obj))
        # A scheduler wraps the method of this very object, and notes only that it was called.
        if hasattr(state.get("step"), "_wrapped_by_lr_sched"):
            del state["step"]
        return (make, arguments, state, *rest)


@final
class Pickling:
    """What `torch.save` takes for a module that pickles: see `_Pickler`."""

    Pickler = _Pickler


def _pickle(thing: Any, path: Path) -> None:
    """Pickle by value what another interpreter could not import, and each storage only once."""
    own = [module for name, module in list(sys.modules.items()) if _is_nameless(name, module)]
    for module in own:
        cloudpickle.register_pickle_by_value(module)
    try:
        torch.save(thing, path, pickle_module=Pickling)
    except (pickle.PicklingError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise CannotIsolate(
            "a task must be picklable to be tried in a process of its own, got "
            f"{type(error).__name__}: {str(error)[:200]}. "
            "Open files and connections inside the data set, or pass isolate=False."
        ) from error
    finally:
        for module in own:
            cloudpickle.unregister_pickle_by_value(module)


def _is_nameless(name: str, module: Any) -> bool:
    """Whether a module was loaded from a file under a name that no import finds."""
    if getattr(module, "__file__", None) is None or name in ("__main__", "__mp_main__"):
        return False
    spec = getattr(module, "__spec__", None)
    if spec is None or spec.origin is None or "site-packages" in spec.origin:
        return False
    try:
        found = find_spec(name)
        # `find_spec` trusts what is loaded, so the search itself is asked again.
        return found is None or (found is spec and not _can_be_imported(name))
    except (ImportError, ValueError, AttributeError):
        return True


def _can_be_imported(name: str) -> bool:
    from importlib.machinery import PathFinder

    parent, _, _ = name.rpartition(".")
    if parent:
        return True  # its package was found
    return PathFinder.find_spec(name) is not None or name in sys.builtin_module_names


def _run(command: list[str], timeout: float) -> tuple[int, str]:
    """Run a process group to its end; whatever happens here, none of it is left there."""
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=words,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = _HANG
        finally:
            _kill_group(process)
        words.seek(0, os.SEEK_END)
        words.seek(max(0, words.tell() - _STDERR_BYTES))
        return code, words.read().decode(errors="replace")


_HANG = 1000  # no exit status: killed by us


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def _died(code: int, words: str) -> Answer:
    last = words.strip().splitlines()[-1:] or [""]
    if code == _HANG:
        return Answer(outcome="hang", note="it did not end in time")
    if code == -getattr(signal, "SIGKILL", 9) or code == 137:
        return Answer(outcome="killed", note="killed by the system")
    kind = classify_text(words)
    if kind is not None:
        return Answer(outcome=kind, note=last[0])
    if code < 0:
        return Answer(outcome="killed", note=f"ended by signal {-code}: {last[0]}"[:500])
    raise TaskError(
        f"a try in a process of its own must leave an answer, got exit status {code}: "
        f"{last[0]:.300}. Code of the task ended the process: remove the call, or pass "
        "isolate=False."
    )


def _never_ready(code: int, words: str) -> CannotIsolate:
    last = words.strip().splitlines()[-1:] or ["no last words"]
    end = "no end in time" if code == _HANG else f"exit status {code}"
    return CannotIsolate(
        f"a process of its own must come as far as a task's first step, got {end}: "
        f"{last[0]:.300}. Let what is pickled be made again, or pass isolate=False."
    )


def _their_error(folder: Path, note: str) -> Exception:
    """Bring the error of the task's own code over, as it was raised where that is possible."""
    try:
        error = cloudpickle.loads((folder / "error.pickle").read_bytes())
    except Exception:
        error = None
    if isinstance(error, Exception):
        return error
    return TaskError(
        f"the task failed in a process of its own: {note}. Try one step by hand: task.step(batch)."
    )
