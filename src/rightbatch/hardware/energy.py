"""Joules of a step, by the counters of the device, through zeus; absent where there are none."""

import importlib
import importlib.util
import math
from collections.abc import Sequence
from itertools import count
from typing import Any, Protocol

import numpy as np
import torch

from rightbatch._time import Clock, Progress, no_progress, synchronize, wall_clock
from rightbatch.hardware.step_time import estimate_seconds, line_through
from rightbatch.hardware.workload import batches_in_process, hold_still
from rightbatch.results import EnergyPoint, EnergyProfile, Status
from rightbatch.task import Task

SHORTEST_WINDOW_SECONDS = 5.0  # counters go on every tenth of a second or so
WINDOWS = 3  # of each size
_WARM_UP_STEPS = 3
_LOOK_SECONDS = 0.2  # between two looks at the clock


class EnergyMonitor(Protocol):
    """What reads the counters: ``zeus.monitor.ZeusMonitor``, or a double of it."""

    def begin_window(self, key: str) -> None:
        """Begin to count."""
        ...

    def end_window(self, key: str) -> Any:
        """Return what was drawn: ``gpu_energy``, ``cpu_energy``, ``dram_energy`` in joules."""
        ...


def energy_counters(device: torch.device | None = None) -> str | None:
    """Say why the joules of a device cannot be measured here.

    Args:
        device: Which; the CPU by default.

    Returns:
        A sentence, or ``None`` where they can.

    Example:
        >>> energy_counters(torch.device("meta"))
        'Energy was not measured: no counters are known for a device of type meta.'
    """
    found = _open_monitor(device or torch.device("cpu"))
    return found if isinstance(found, str) else None


def energy_seconds(step_seconds: float) -> float:
    """Predict how long measuring the joules of one batch size takes.

    Args:
        step_seconds: Of an optimizer step at that size.

    Returns:
        Seconds of warming up, and of the shortest windows until the steps in them are done.

    Example:
        Of steps of 2 s four to warm up, and three windows of 5 s that a step may overrun:

        >>> energy_seconds(2.0)
        29.0
    """
    beyond = max(_LOOK_SECONDS, step_seconds)
    return (_WARM_UP_STEPS + 1) * step_seconds + WINDOWS * (SHORTEST_WINDOW_SECONDS + beyond)


def measure_energy(
    task: Task,
    sizes: Sequence[int],
    *,
    price_per_kwh: float | None = None,
    window_seconds: float = SHORTEST_WINDOW_SECONDS,
    monitor: EnergyMonitor | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
    clock: Clock = wall_clock,
) -> EnergyProfile | None:
    """Measure joules per optimizer step at several batch sizes, by the device's own counters.

        round 1    16 16 16 ... (5 s) | 64 64 ... (5 s) | 4 4 4 4 4 ... (5 s)
        round 2    4 4 4 4 4 ... (5 s) | 16 16 16 ... (5 s) | 64 64 ... (5 s)
        ...

    Three windows of each size, in random order, of steps on a batch that is on the device. All
    that the device draws meanwhile counts, also what it would draw at rest: a run pays for that.
    On a GPU it is the GPU's, on a CPU that of its packages and their memory.

    Trap: of a CPU the counters tell what every process draws. Measure on a quiet machine.

    Args:
        task: What is trained; left as it was. Learning rates are turned down meanwhile.
        sizes: Batch sizes to measure.
        price_per_kwh: Of electricity, any currency; kept with the result.
        window_seconds: The least that a window takes, at least 5: counters are slow.
        monitor: What reads the counters; zeus where it is installed and finds some.
        seed: Of shuffles, order and resampling.
        progress: Told how many of the windows are done.
        clock: Monotonic seconds.

    Returns:
        The joules, with the line through them. ``None`` where there are no counters, and
        `energy_counters` says why; or where none moved.

    Raises:
        ValueError: If a size, the window or the price is out of range.
        TaskError: If the task cannot be measured.

    Example:
        >>> from rightbatch.testing import QuadraticTask
        >>> task = QuadraticTask().task
        >>> profile = measure_energy(task, [4, 8])
        >>> (profile is None) == (energy_counters(task.device) is not None)
        True

    References:
        You, Chung and Chowdhury (2023), Zeus: understanding and optimizing GPU energy
        consumption of DNN training, https://arxiv.org/abs/2208.06102.
    """
    checked = _check_arguments(task, sizes, price_per_kwh, window_seconds)
    if monitor is None:
        found = _open_monitor(task.device)
        if isinstance(found, str):
            return None
        monitor = found
    task.check()
    samples: dict[int, list[float]] = {size: [] for size in checked}
    rng, keys = np.random.default_rng(seed), count()
    with task.preserved():
        torch.manual_seed(seed)
        hold_still(task.optimizer)
        batches = {size: next(batches_in_process(task, size, seed=seed)) for size in checked}
        looks = {size: _steps_between_looks(task, batch, clock) for size, batch in batches.items()}
        for _ in range(WINDOWS):
            for size in map(int, rng.permutation(checked)):
                key = f"rightbatch-{next(keys)}"
                monitor.begin_window(key)
                steps = _take_steps(task, batches[size], looks[size], window_seconds, clock)
                samples[size].append(_joules(monitor.end_window(key)) / steps)
                done = sum(map(len, samples.values())) / (WINDOWS * len(checked))
                progress(done, f"energy: batch size {size}")
    return _summarize(samples, window_seconds, price_per_kwh, rng)


def _check_arguments(
    task: Task, sizes: Sequence[int], price_per_kwh: float | None, window_seconds: float
) -> list[int]:
    """Raise where an argument is out of range; return the sizes, ascending."""
    cap = task.max_batch_size or math.inf
    if not sizes or any(int(size) != size or not 1 <= size <= cap for size in sizes):
        raise ValueError(
            f"`sizes` must be whole numbers from 1 to {cap} (the data set or the task's "
            f"max_batch_size), got {list(sizes)[:5]!r}. Two or more sizes make a line."
        )
    if not SHORTEST_WINDOW_SECONDS <= window_seconds < math.inf:
        raise ValueError(
            f"`window_seconds` must be at least {SHORTEST_WINDOW_SECONDS:g}, got "
            f"{window_seconds!r}. Energy counters go on too rarely for less."
        )
    if price_per_kwh is not None and not 0 < price_per_kwh < math.inf:
        raise ValueError(
            f"`price_per_kwh` must be positive and finite, got {price_per_kwh!r}. "
            "Leave it out if unknown."
        )
    return sorted({int(size) for size in sizes})


def _steps_between_looks(task: Task, batch: Any, clock: Clock) -> int:
    """Warm up; count the steps after which a device is waited for: waiting after each costs."""
    for _ in range(_WARM_UP_STEPS):
        task.step(batch)
    synchronize(task.device)
    start = clock()
    task.step(batch)
    synchronize(task.device)
    return max(1, int(_LOOK_SECONDS / max(clock() - start, 1e-6)))


def _take_steps(
    task: Task, batch: Any, steps_between_looks: int, window_seconds: float, clock: Clock
) -> int:
    """Take steps for at least so long, and wait until they are done; return how many."""
    start, steps = clock(), 0
    while clock() - start < window_seconds:
        for _ in range(steps_between_looks):
            task.step(batch)
        synchronize(task.device)
        steps += steps_between_looks
    return steps


def _joules(drawn: Any) -> float:
    """Add up what was drawn: of the GPU that was watched, else of processors and memory."""
    parts = [drawn.gpu_energy] if drawn.gpu_energy else [drawn.cpu_energy, drawn.dram_energy]
    return sum(sum(part.values()) for part in parts if part)


def _open_monitor(device: torch.device) -> EnergyMonitor | str:
    """Make the monitor of a device, or say why there is none."""
    none = "Energy was not measured:"
    if device.type not in ("cpu", "cuda"):
        return f"{none} no counters are known for a device of type {device.type}."
    if importlib.util.find_spec("zeus") is None:
        return (
            f"{none} zeus, which reads the counters, is absent: pip install 'rightbatch[energy]'."
        )
    on_gpu = device.type == "cuda"
    try:
        here = torch.cuda.current_device() if on_gpu and device.index is None else device.index
        zeus: Any = importlib.import_module("zeus.monitor")
        monitor = zeus.ZeusMonitor(
            gpu_indices=[here] if on_gpu else [], cpu_indices=[] if on_gpu else None
        )
    except Exception as error:  # the driver's, the kernel's or zeus's own
        return f"{none} zeus cannot read the counters of {device} ({error})."
    if not on_gpu and not monitor.cpu_indices:
        return f"{none} zeus finds no counters of this processor that it may read (RAPL)."
    return monitor


def _summarize(
    samples: dict[int, list[float]],
    window_seconds: float,
    price_per_kwh: float | None,
    rng: np.random.Generator,
) -> EnergyProfile | None:
    """Keep the sizes at which the counters moved in every window."""
    points: list[EnergyPoint] = []
    for size, joules in samples.items():
        if min(joules) > 0:
            # As for seconds: whatever else the machine does only ever adds.
            value, low, high = estimate_seconds(joules, rng)
            points.append(EnergyPoint(batch_size=size, joules_per_step=value, low=low, high=high))
    if not points:
        return None
    sizes = [point.batch_size for point in points]
    joules, each = line_through(sizes, [point.joules_per_step for point in points])
    if len(points) == 1:
        joules, each = points[0].joules_per_step, 0.0
    return EnergyProfile(
        points=tuple(points),
        joules=joules,
        joules_per_example=each,
        window_seconds=window_seconds,
        price_per_kwh=price_per_kwh,
        status=Status.OK,
    )
