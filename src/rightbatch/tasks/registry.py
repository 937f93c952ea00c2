"""The built-in tasks by name, and finding the task that a user's words mean."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from rightbatch._time import Progress, no_progress
from rightbatch.errors import UnknownTask
from rightbatch.task import Task
from rightbatch.tasks.bikes import BIKES_FILE, bikes
from rightbatch.tasks.data_files import DataFile, find_here, locate
from rightbatch.tasks.digits import digits
from rightbatch.tasks.mnist import MNIST_FILE, mnist
from rightbatch.tasks.shakespeare import SHAKESPEARE_FILE, shakespeare
from rightbatch.tasks.user_code import task_from_file, task_from_module


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltIn:
    """A task that comes with rightbatch, and the target that runs of it are timed to."""

    factory: Callable[..., Task]  # options: seed, device
    description: str  # one sentence
    batch_size: int  # examples per optimizer step that the task trains with by default
    data_file: DataFile | None  # None: nothing to download
    metric: str  # what `Task.evaluate` of it returns
    target: float  # of that metric; tuned runs reach it well before they stop improving
    higher_is_better: bool

    def whereabouts(self) -> str:
        """Say where the data file is, without downloading it."""
        if self.data_file is None:
            return "needs no data file"
        found = find_here(self.data_file)
        return str(found) if found else f"{self.data_file.name} will be downloaded when needed"

    def reached(self, value: float) -> bool:
        """Whether a value of the metric is as good as the target."""
        return value >= self.target if self.higher_is_better else value <= self.target


BUILT_IN: dict[str, BuiltIn] = {
    "digits": BuiltIn(
        factory=digits,
        description="1,500 images of 8x8 pixels, a small convolutional network, SGD with momentum.",
        batch_size=32,
        data_file=None,
        metric="test accuracy",
        target=0.96,
        higher_is_better=True,
    ),
    "mnist": BuiltIn(
        factory=mnist,
        description="60,000 images of 28x28 pixels, a network of three convolutions, SGD.",
        batch_size=64,
        data_file=MNIST_FILE,
        metric="test accuracy",
        target=0.98,
        higher_is_better=True,
    ),
    "bikes": BuiltIn(
        factory=bikes,
        description="13,903 hours of bike rentals, a perceptron on embedded categories, AdamW.",
        batch_size=64,
        data_file=BIKES_FILE,
        metric="held-out root-mean-square error of log(1 + count)",
        target=0.32,
        higher_is_better=False,
    ),
    "shakespeare": BuiltIn(
        factory=shakespeare,
        description="7,843 windows of 128 characters, a transformer of four layers, AdamW.",
        batch_size=32,
        data_file=SHAKESPEARE_FILE,
        metric="held-out loss in nats per character",
        target=2.0,
        higher_is_better=False,
    ),
}


def load_task(spec: str, *, progress: Progress = no_progress) -> Task:
    """Build the task that a name, a file or a module means.

    While your code is loaded and the function runs, its folder comes first on the import path.
    Afterwards it comes last, so that it hides nothing, and what is imported late still is found:
    by a loss, or by the loader's worker processes.

    Args:
        spec: A built-in name, ``path/to/file.py:function``, or ``package.module:function`` with
            the package installed or in the current folder. The function takes no argument and
            returns a `Task`.
        progress: Told how far the download of a built-in task's data is.

    Returns:
        The task, as the function built it.

    Raises:
        UnknownTask: If there is no such task, file, module or function.
        TaskError: If the function fails (its error is the cause) or returns something else.
        DataUnavailable: If a built-in task's data cannot be found, downloaded or read.
        MissingExtra: If a built-in task needs a package that is not installed.

    Example:
        >>> load_task("digits").num_examples
        1500
    """
    place, _, function = spec.rpartition(":")
    if not place or spec.endswith(".py"):
        return _load_built_in(spec, progress)
    if place.endswith(".py") or "/" in place or "\\" in place:
        return task_from_file(place, function)
    return task_from_module(place, function)


def _load_built_in(name: str, progress: Progress) -> Task:
    built_in = BUILT_IN.get(name)
    if built_in is None:
        near = difflib.get_close_matches(name.lower(), BUILT_IN, n=3)
        raise UnknownTask(
            f"`TASK` must be a built-in name ({', '.join(BUILT_IN)}), path/to/file.py:function or "
            f"package.module:function, got {name!r}. {_advice(name, near)}"
        )
    if built_in.data_file is not None:
        locate(built_in.data_file, progress=progress)
    return built_in.factory()


def _advice(name: str, near: list[str]) -> str:
    if near:
        return f"Did you mean {' or '.join(near)}?"
    if name.endswith(".py"):
        return f"Name the function that returns the task too, such as {name}:make_task."
    return "`rightbatch tasks` lists the built-in ones."
