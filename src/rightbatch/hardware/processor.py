"""What a stretch of time was spent on: working, waiting, or standing in line for a processor.

Linux counts for every thread how long it ran, and how long it was ready to but had no processor.
The first beside the wall clock tells a step that waits from one that works. The second is the
doing of other processes: on a busy machine a long step is never undisturbed, while of many short
ones some are, so that without it large batches look slower than they are.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from rightbatch._time import Clock, wall_clock
from rightbatch.hardware.step_time import QUANTILE

Processor = Callable[[], tuple[float, float]]  # seconds run and ready, over all threads so far

_THREADS = Path("/proc/self/task")
_OWN_CGROUPS, _CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


@final
@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of time, by the wall and by the threads of this process.

    Attributes:
        wall_seconds: By the wall clock.
        ran_seconds: Summed over threads: two of them run two seconds a second.
        ready_seconds: Without a processor, summed over threads.
    """

    wall_seconds: float
    ran_seconds: float
    ready_seconds: float

    @property
    def idle_share(self) -> float:
        """Share of the wall's time in which no thread ran or was ready to.

        Example:
            >>> Stretch(1.0, 0.25, 0.0).idle_share, Stretch(1.0, 1.9, 0.1).idle_share
            (0.75, 0.0)
        """
        busy = self.ran_seconds + self.ready_seconds
        return max(0.0, 1 - busy / self.wall_seconds) if self.wall_seconds > 0 else 0.0

    @property
    def crowded_share(self) -> float:
        """Share of the time that threads wanted to run and had no processor.

        Example:
            >>> Stretch(1.0, 0.75, 0.25).crowded_share
            0.25
        """
        busy = self.ran_seconds + self.ready_seconds
        return self.ready_seconds / busy if busy > 0 else 0.0

    @property
    def undisturbed_seconds(self) -> float:
        """What the wall clock would have shown on a machine with a processor for each thread.

        Time of waiting stays; the rest shrinks by the share in which threads stood in line. It is
        not enough where threads wait for one another: then one in line holds up those that run.

        Example:
            Half a second of sleep and half a second of work, half of it in line:

            >>> Stretch(1.0, 0.25, 0.25).undisturbed_seconds
            0.75
        """
        idle = self.idle_share * self.wall_seconds
        return idle + (self.wall_seconds - idle) * (1 - self.crowded_share)


def seconds_each(times: Sequence[float], stretch: Stretch | None) -> float:
    """Return the seconds between two looks at the clock, without what other processes added.

    The 20 % quantile passes by the acts that were disturbed, where some were not. Of acts so long
    that all were, the time that threads stood in line is taken off their mean.

    Args:
        times: One more than there were acts.
        stretch: From the first to the last; ``None``: not known.

    Example:
        >>> seconds_each([0.0, 1.0, 2.0, 5.0, 6.0, 7.0], None)
        1.0
        >>> seconds_each([0.0, 4.0, 8.0], Stretch(8.0, 6.0, 2.0))
        3.0
    """
    low = float(np.quantile(np.diff(times), QUANTILE))
    return low if stretch is None else min(low, stretch.undisturbed_seconds / (len(times) - 1))


def stretch_between(
    seconds: float, before: tuple[float, float] | None, after: tuple[float, float] | None
) -> Stretch | None:
    """Make a stretch of two readings of a `Processor`; ``None`` where there is none."""
    if before is None or after is None:
        return None
    return Stretch(seconds, after[0] - before[0], after[1] - before[1])


def processor_beside(clock: Clock) -> Processor | None:
    """Return what this process ran and stood in line, or ``None`` where nothing follows from it.

    Args:
        clock: That times are taken with. Beside another than the wall's no other makes sense.

    Returns:
        A reading of all threads. Nothing is ever in line where that cannot be read, or where a
        quota keeps this process from the processors: training will be kept from them too.
    """
    if clock is not wall_clock:
        return None
    if not _can_read():
        return lambda: (time.process_time(), 0.0)
    if any(_quotas()):
        return lambda: (sum(_read_threads()), 0.0)
    return _read_threads


def _can_read() -> bool:
    try:
        return _read_threads()[0] > 0
    except (OSError, ValueError, IndexError):
        return False


def _read_threads() -> tuple[float, float]:
    ran = ready = 0
    for thread in _THREADS.iterdir():
        try:
            numbers = (thread / "schedstat").read_text().split()
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        ran, ready = ran + int(numbers[0]), ready + int(numbers[1])
    return ran / 1e9, ready / 1e9


def _quotas() -> Iterator[bool]:
    """Say of each control group that this process is in whether it limits processor time."""
    try:
        lines = _OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = _CGROUPS / "cpu" if controllers else _CGROUPS
        here = root / path.strip("/")
        for group in (here, *here.parents):
            yield _has_quota(group)
            if group == root:
                break


def _has_quota(group: Path) -> bool:
    for name, unlimited in (("cpu.max", "max"), ("cpu.cfs_quota_us", "-1")):
        try:
            return (group / name).read_text().split()[0] != unlimited
        except (OSError, IndexError):
            continue
    return False
