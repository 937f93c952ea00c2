"""What steps pay for pages of memory that the C library gave back to the system after the last one.

    a step ends      its tensors are freed, and the end of the heap goes back to the system
    the next one     asks for as much again, and the system clears every page before its first use

glibc gives back what is free at the end of its heap from `M_TRIM_THRESHOLD` on, and at once what
has pages of its own, from `M_MMAP_THRESHOLD` on. Both adapt to the largest block that was ever
freed, so that the same step may be quick in one process and slow in another: see `mallopt(3)`.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from rightbatch._format import format_count
from rightbatch.hardware.heap import is_glibc
from rightbatch.results import ThroughputPoint

_KEEPS = "MALLOC_TRIM_THRESHOLD_=1073741824 MALLOC_MMAP_THRESHOLD_=33554432"
_WORTH_SAYING = 0.1  # of what threads ran
_PAGES = 1024  # to touch, once, for what one of them costs: a few milliseconds


def paging_clock() -> Callable[[], float] | None:
    """Make a reading of the processor time that this process spent on new pages so far, in seconds.

    The system counts pages (`getrusage(2)`: ``ru_minflt``). What one takes is measured here, on
    small pages: where the heap has large ones the reading is too low, and never too high.

    Returns:
        The reading; ``None`` where it is not glibc whose heap it is.

    Example:
        >>> clock = paging_clock()
        >>> clock is None or clock() >= 0
        True
    """
    if sys.platform != "linux" or not is_glibc(os.environ):
        return None
    seconds_per_page = _measure_page()
    return lambda: seconds_per_page * _count_pages()


def paging_note(points: Sequence[ThroughputPoint]) -> str | None:
    """Say at which batch size new pages take the largest share of computing, and the way out.

    Example:
        >>> point = ThroughputPoint(batch_size=512, step_seconds=1.0, low=1.0, high=1.0,
        ...                         load_seconds=0.0, total_seconds=1.0, paging_share=0.25)
        >>> paging_note([point])[:51]
        'At batch size 512 about 25 % of computing went into'
    """
    known = [(point.paging_share or 0.0, point.batch_size) for point in points]
    share, size = max(known, default=(0.0, 0))
    if share < _WORTH_SAYING:
        return None
    return (
        f"At batch size {format_count(size)} about {100 * share:.0f} % of computing went into "
        "pages of memory that the C library had given back after the step before: with "
        f"{_KEEPS} in the environment of measuring and of training it keeps them."
    )


def _measure_page() -> float:
    import mmap

    size = _PAGES * mmap.PAGESIZE
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as fresh:
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            with suppress(OSError):  # a kernel without large pages
                fresh.madvise(mmap.MADV_NOHUGEPAGE)
        before, began = _count_pages(), time.process_time()
        fresh[:: mmap.PAGESIZE] = bytes(_PAGES)
        return (time.process_time() - began) / max(_PAGES, _count_pages() - before)


def _count_pages() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
