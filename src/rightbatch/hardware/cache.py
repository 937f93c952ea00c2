"""Measurements of the hardware, kept for the next time that the very same thing is measured.

An entry is an ordinary results file with one part, named by a fingerprint of all that the answer
depends on. The noise and the learning rate depend on the weights, so they are not kept.
"""

import math
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, final

import torch

import rightbatch._environment as environment
from rightbatch import _codec
from rightbatch.errors import ResultsError
from rightbatch.hardware.budget import device_budget_bytes
from rightbatch.hardware.identity import CannotIdentify, identify
from rightbatch.hardware.settings import precisions_here, settings_here
from rightbatch.hardware.templates import SIZES, tensors_in
from rightbatch.hardware.workload import host_batches
from rightbatch.results import Results, Status
from rightbatch.task import Task

_FRESH_SECONDS = 30 * 24 * 3600.0  # older: drivers and machines change under a fixed name
_DIGITS = 20
# What changes while the optimizer works, or repeats its groups.
_OF_THE_RUN = ("state", "param_groups", "defaults", "_opt_called")
# Of the environment: how memory is allocated, and how many threads compute with what.
_VARIABLES = (
    "MALLOC_",
    "GLIBC_TUNABLES",
    "LD_PRELOAD",
    "OMP_",
    "GOMP_",
    "KMP_",
    "MKL_",
    "ATEN_",
    "DNNL_",
    "ONEDNN_",
    "PYTORCH_",
    "TORCH",
    "CUDA_",
    "CUBLAS",
    "CUDNN_",
    "NVIDIA_",
)
_OF_A_LAUNCH = "TORCHELASTIC_"  # under `torchrun`: its number, and where it writes


def _silent(line: str) -> None:
    pass


@final
class MeasurementCache:
    """A folder of measurements.

    Args:
        folder: Made when the first entry is kept.
        fresh: Take nothing from here, and keep what is measured.
        say: Told, in one line each, what was taken from here and what was dropped.
        now: Seconds since the epoch.

    Example:
        >>> import tempfile
        >>> from rightbatch.testing import QuadraticTask
        >>> task = QuadraticTask().task
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     MeasurementCache(Path(folder)).get("memory", task, seed=0) is None
        True
    """

    def __init__(
        self,
        folder: Path,
        *,
        fresh: bool = False,
        say: Callable[[str], None] = _silent,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._folder, self._fresh, self._say, self._now = folder, fresh, say, now
        self._asked: tuple[Task, str, dict[str, Any], Path] | None = None

    def get(self, name: str, task: Task, **flags: Any) -> Any | None:
        """Return what was measured before, if it is there, whole and recent.

        Args:
            name: Attribute of `Results`: "memory" or "throughput".
            task: What would be measured.
            flags: How it would be measured.
        """
        try:
            path = self._path(name, task, flags)
        except CannotIdentify:
            return None  # `put` says so
        # Measuring may change attributes, such as tables that a model makes once: what is measured
        # now is kept under the name that the next process will ask for.
        self._asked = (task, name, flags, path)
        if self._fresh:
            return None
        try:
            age = self._now() - path.stat().st_mtime
            if age > _FRESH_SECONDS:
                return self._drop(path, name, f"it is {age / 86400:.0f} days old")
            found = getattr(_codec.read(path, Results), name)
        except FileNotFoundError:
            return None
        except (ResultsError, OSError) as error:
            return self._drop(path, name, f"it cannot be read ({error!s:.100})")
        if found is None:
            return self._drop(path, name, "it holds another part")
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
        self._say(f"{name}: taken from a measurement of {since}; --fresh measures again.")
        return found

    def put(self, name: str, result: Any, task: Task, **flags: Any) -> None:
        """Keep a measurement that came to its end; where keeping fails, say so and go on."""
        if result.status in (Status.OUT_OF_TIME, Status.LEAK):
            return
        results = Results(
            task=task.facts(),
            environment=environment.describe_environment(task.device),
            **{name: result},
        )
        try:
            asked, self._asked = self._asked, None
            if asked and asked[0] is task and asked[1:3] == (name, flags):
                path = asked[3]
            else:
                path = self._path(name, task, flags)
            partial = path.with_suffix(".partial")
            self._folder.mkdir(parents=True, exist_ok=True)
            _codec.write(results, partial)
            partial.replace(path)
        except (CannotIdentify, ResultsError, OSError) as error:
            self._say(f"{name}: not kept for the next time ({error!s:.100}).")

    def _path(self, name: str, task: Task, flags: dict[str, Any]) -> Path:
        return self._folder / f"{name}-{fingerprint(task, name=name, **flags)}.json"

    def _drop(self, path: Path, name: str, reason: str) -> None:
        with suppress(OSError):
            path.unlink()
        self._say(f"{name}: an earlier measurement was dropped, {reason}.")


def free_memory(device: torch.device) -> str:
    """Name the memory that is free, to about a tenth: what fits depends on it."""
    return f"2^{int(8 * math.log2(max(1, device_budget_bytes(device)))) / 8}"


def fingerprint(task: Task, **flags: Any) -> str:
    """Name all that a measurement of the hardware depends on, in 20 hexadecimal digits.

    The model's structure, attributes, shapes, types and code; the optimizer and its settings, but
    for the rate; loss, weight and worst case with what they close over; data set and loader; the
    shapes of a batch; device, threads, versions, and switches of torch and of the allocator. Not
    the values of weights and data.

    Raises:
        CannotIdentify: If a part of the task cannot be taken apart.

    Example:
        >>> from rightbatch.testing import QuadraticTask
        >>> a, b = QuadraticTask(dimension=3).task, QuadraticTask(dimension=4).task
        >>> fingerprint(a) == fingerprint(a), fingerprint(a) == fingerprint(b)
        (True, False)
    """
    with task.preserved(weights=False):
        batch = next(host_batches(task, SIZES[0], seed=0))
    described = {
        "flags": flags,
        "model": task.model,
        "optimizer": [type(task.optimizer), *_settings(task)],
        "functions": [task._loss, task._weight, task.worst_case],
        "batch": [(list(t.shape), str(t.dtype)) for t in tensors_in(batch)],
        "source": task.source,
        "task": [task.batch_size, task.max_batch_size, task.clip_grad_norm],
        "environment": _surroundings(task.device),
    }
    return identify(described)[:_DIGITS]


def _settings(task: Task) -> list[Any]:
    optimizer = task.optimizer
    left_out = ("params", "lr", "initial_lr")
    own = {k: v for k, v in vars(optimizer).items() if k not in _OF_THE_RUN}
    return [own] + [
        [len(group["params"]), {k: v for k, v in group.items() if k not in left_out}]
        for group in optimizer.param_groups
    ]


def _surroundings(device: torch.device) -> dict[str, Any]:
    described = environment.describe_environment(device)
    described.pop("commit", None)  # the code that matters is looked at itself
    return {
        **described,
        "node": platform.node(),
        "variables": {
            k: v
            for k, v in sorted(os.environ.items())
            if k.startswith(_VARIABLES) and not k.startswith(_OF_A_LAUNCH)
        },
        "settings": settings_here(),
        "precision": precisions_here(),
        "autocast": [
            torch.is_autocast_enabled(device.type),
            str(torch.get_autocast_dtype(device.type)),
        ],
    }
