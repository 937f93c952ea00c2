"""What a stretch of time was spent on: working, waiting, or standing in line for a processor.

Linux counts for every thread how long it ran, and how long it was ready to but had no processor.
The first beside the wall clock tells a step that waits from one that works. The second is the
doing of other processes: on a busy machine a long step is never undisturbed, while of many short
ones some are, so that without it large batches look slower than they are.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import final

from rightbatch._time import Clock, wall_clock
from rightbatch.hardware.paging import paging_clock

_THREADS, _THIS_THREAD = Path("/proc/self/task"), Path("/proc/thread-self/schedstat")
_RECORD_BYTES = 128  # three numbers of at most 20 digits
_OWN_CGROUPS, _CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


@final
@dataclass(frozen=True, slots=True)
class Processor:
    """Readings of what the processors did for this process, in seconds so far.

    Attributes:
        threads: That threads ran, and that they were ready to and had none; summed over all.
        own_line: That the thread which made this object was ready and had none.
        paging: That threads ran to get pages of memory; ``None``: not known.
    """

    threads: Callable[[], tuple[float, float]]
    own_line: Callable[[], float]
    paging: Callable[[], float] | None = None

    def look(self) -> "Reading":
        """Read what all threads did."""
        ran, ready = self.threads()
        return Reading(ran, ready, self.paging() if self.paging is not None else None)


@final
@dataclass(frozen=True, slots=True)
class Reading:
    """One look at all threads of this process, in seconds so far."""

    ran: float
    ready: float
    paging: float | None


@final
@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of time, by the wall and by the threads of this process.

    Attributes:
        wall_seconds: By the wall clock.
        ran_seconds: Summed over threads: two of them run two seconds a second.
        ready_seconds: Without a processor, summed over threads.
        paging_seconds: Of what they ran, for pages of memory; ``None``: not known.
    """

    wall_seconds: float
    ran_seconds: float
    ready_seconds: float
    paging_seconds: float | None = None

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
    def paging_share(self) -> float | None:
        """Share of what threads ran that went into pages of memory; ``None``: not known.

        Example:
            >>> Stretch(1.0, 2.0, 0.0, 0.5).paging_share
            0.25
        """
        if self.paging_seconds is None or not self.ran_seconds > 0:
            return None
        return min(1.0, self.paging_seconds / self.ran_seconds)


def time_each(
    act: Callable[[], object],
    count: int,
    clock: Clock,
    processor: Processor | None = None,
    *,
    limit_seconds: float = math.inf,
) -> list[float]:
    """Time acts one by one, without what this thread stood in line for a processor meanwhile.

        clock | line | act | line | clock

    The line is read inside of the clock: a wait between the two readings makes an act too long,
    which a low quantile passes by, and never too short.

    Trap: other threads of an act may stand in line too, and hold up this one while it waits for
    them. That stays in: how much of their waiting held up the act is not known.

    Args:
        act: To be timed.
        count: How often.
        clock: Monotonic seconds.
        processor: ``None``: nothing is taken off.
        limit_seconds: By the clock; past it no further act begins. One is always timed.

    Returns:
        Seconds of each.

    Example:
        An act that runs one second and stands in line for two, on a clock that it moves:

        >>> now = [0.0]
        >>> def act():
        ...     now[0] += 3.0
        >>> processor = Processor(lambda: (0.0, 0.0), own_line=lambda: now[0] * 2 / 3)
        >>> time_each(act, 2, lambda: now[0]), time_each(act, 2, lambda: now[0], processor)
        ([3.0, 3.0], [1.0, 1.0])
    """
    line = processor.own_line if processor is not None else _no_line
    first, seconds = clock(), list[float]()
    for _ in range(count):
        began, before = clock(), line()
        act()
        waited, ended = line() - before, clock()
        seconds.append(ended - began - waited)
        if ended - first >= limit_seconds:
            break
    return seconds


def _no_line() -> float:
    return 0.0


def stretch_between(
    seconds: float, before: Reading | None, after: Reading | None
) -> Stretch | None:
    """Make a stretch of two readings of all threads; ``None`` where there is none."""
    if before is None or after is None:
        return None
    paging = None
    if before.paging is not None and after.paging is not None:
        paging = after.paging - before.paging
    return Stretch(seconds, after.ran - before.ran, after.ready - before.ready, paging)


@contextmanager
def processor_beside(clock: Clock) -> Iterator[Processor | None]:
    """Read what this process ran and stood in line, or ``None`` where nothing follows from it.

    Nothing is ever in line where that cannot be read, or where a quota keeps this process from
    the processors: training will be kept from them too.

    Args:
        clock: That times are taken with. Beside another than the wall's no other makes sense.
    """
    if clock is not wall_clock:
        yield None
        return
    paging = paging_clock()
    if not _can_read():
        yield Processor(lambda: (time.process_time(), 0.0), _no_line, paging)
    elif any(_quotas()):
        yield Processor(lambda: (sum(_read_threads()), 0.0), _no_line, paging)
    else:
        record = os.open(_THIS_THREAD, os.O_RDONLY)  # kept open: a look costs a microsecond
        try:
            yield Processor(
                _read_threads,
                lambda: _ran_and_ready(os.pread(record, _RECORD_BYTES, 0))[1] / 1e9,
                paging,
            )
        finally:
            os.close(record)


def _can_read() -> bool:
    try:
        _ran_and_ready(_THIS_THREAD.read_bytes())
        return _read_threads()[0] > 0
    except (OSError, ValueError, IndexError):
        return False


def _read_threads() -> tuple[float, float]:
    ran = ready = 0
    for thread in _THREADS.iterdir():
        try:
            record = (thread / "schedstat").read_bytes()
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        more_ran, more_ready = _ran_and_ready(record)
        ran, ready = ran + more_ran, ready + more_ready
    return ran / 1e9, ready / 1e9


def _ran_and_ready(record: bytes) -> tuple[int, int]:
    """Return the nanoseconds in a thread's record."""
    ran, ready, *_ = record.split()
    return int(ran), int(ready)


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
