import mmap
import os
import subprocess
import sys

import pytest

from rightbatch.hardware import paging
from rightbatch.hardware.heap import is_glibc
from rightbatch.hardware.paging import paging_clock, paging_note
from rightbatch.hardware.processor import Processor, Reading, Stretch, stretch_between
from rightbatch.results import ThroughputPoint

on_glibc = pytest.mark.skipif(
    sys.platform != "linux" or not is_glibc({}), reason="the heap is another one than glibc's"
)


def point(size: int, share: float | None) -> ThroughputPoint:
    return ThroughputPoint(
        batch_size=size,
        step_seconds=1.0,
        low=1.0,
        high=1.0,
        load_seconds=0.0,
        total_seconds=1.0,
        paging_share=share,
    )


def touch(pages: int) -> None:
    with mmap.mmap(-1, pages * mmap.PAGESIZE) as fresh:
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            fresh.madvise(mmap.MADV_NOHUGEPAGE)
        fresh[:: mmap.PAGESIZE] = bytes(pages)


@on_glibc
def test_four_times_the_pages_take_four_times_as_long() -> None:
    """Pages are counted, and all cost the same: no clock is in it."""
    clock = paging_clock()
    assert clock is not None
    readings = [clock()]
    for pages in (2000, 8000):
        touch(pages)
        readings.append(clock())
    few, many = readings[1] - readings[0], readings[2] - readings[1]
    assert few > 0
    assert many / few == pytest.approx(4, rel=0.1)


def test_nothing_is_known_of_another_heap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "is_glibc", lambda environment: False)
    assert paging_clock() is None


def test_a_stretch_holds_what_was_spent_meanwhile() -> None:
    stretch = stretch_between(2.0, Reading(5.0, 1.0, 0.5), Reading(9.0, 1.0, 1.5))
    assert stretch == Stretch(2.0, 4.0, 0.0, 1.0)
    assert stretch.paging_share == 0.25


def test_what_is_not_known_is_not_zero() -> None:
    assert Processor(lambda: (3.0, 1.0), lambda: 0.0).look() == Reading(3.0, 1.0, None)
    stretch = stretch_between(2.0, Reading(5.0, 1.0, None), Reading(9.0, 1.0, None))
    assert stretch is not None
    assert stretch.paging_share is None
    assert Stretch(1.0, 0.0, 0.0, 0.0).paging_share is None  # nothing ran


def test_the_note_names_the_worst_size_and_the_way_out() -> None:
    note = paging_note([point(64, 0.02), point(512, 0.31), point(1024, 0.28), point(2048, None)])
    assert note is not None
    assert "batch size 512 about 31 % of computing" in note
    assert "MALLOC_TRIM_THRESHOLD_=1073741824 MALLOC_MMAP_THRESHOLD_=33554432" in note


@pytest.mark.parametrize("share", [None, 0.0, 0.09])
def test_little_is_not_worth_a_word(share: float | None) -> None:
    assert paging_note([point(64, share)]) is None
    assert paging_note([]) is None


STEPS = """
import resource, torch
model = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(12)))
inputs = torch.ones(4096, 256)
def pages():
    for _ in range(5):
        model.zero_grad()
        model(inputs).square().mean().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(-pages() + pages())
"""


@on_glibc
@pytest.mark.slow
def test_with_the_setting_the_heap_keeps_its_pages() -> None:
    """Five steps free 100 MiB each, 25,600 pages: 17,000 to 32,000 measured, and 0 to 1,024."""
    kept = dict(setting.split("=") for setting in paging._KEEPS.split())
    pages = []
    for settings in ({}, kept):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
        done = subprocess.run(
            [sys.executable, "-c", STEPS],
            env={**environment, **settings},
            capture_output=True,
            text=True,
            check=True,
        )
        pages.append(int(done.stdout))
    without, with_setting = pages
    assert without > 5000
    assert with_setting < without / 3
