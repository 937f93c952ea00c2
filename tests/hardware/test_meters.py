"""Peak memory. Oracle: closed form (a known allocation), with a twin that shows the meter moves."""

import subprocess
import sys

import pytest
import torch

from rightbatch.errors import RightBatchError
from rightbatch.hardware import meters
from rightbatch.hardware.meters import Meter, meter_for

MIB = 2**20
PAGES = MIB  # the kernel counts pages in batches, so a reading may lag by a few hundred kB


def allocate_and_drop(count_bytes: int, device: str | torch.device = "cpu") -> None:
    torch.ones(count_bytes, dtype=torch.uint8, device=device)


def test_a_block_that_was_dropped_again_still_shows_in_the_peak() -> None:
    meter = meter_for(torch.device("cpu"))
    meter.reset()
    quiet = meter.peak_bytes()
    allocate_and_drop(64 * MIB)
    assert 64 * MIB - PAGES <= meter.peak_bytes() - quiet < 80 * MIB


def test_reset_forgets_the_peak() -> None:
    meter = meter_for(torch.device("cpu"))
    allocate_and_drop(64 * MIB)
    assert meter.peak_bytes() >= 64 * MIB - PAGES
    meter.reset()
    assert meter.peak_bytes() < 16 * MIB


def test_what_is_kept_since_the_meter_was_made_counts_also_after_a_reset() -> None:
    meter = meter_for(torch.device("cpu"))
    kept = torch.ones(64 * MIB, dtype=torch.uint8)
    meter.reset()
    assert meter.peak_bytes() >= kept.numel() - PAGES


SMALL_BLOCKS = """
import torch
from rightbatch.hardware.meters import meter_for, reclaim
meter = meter_for(torch.device("cpu"))
blocks = [torch.ones(1000, dtype=torch.uint8) for _ in range(40_000)]
print(meter.peak_bytes())
blocks.clear()
reclaim(torch.device("cpu"))
meter.reset()
print(meter.peak_bytes())
"""


def test_many_small_blocks_are_given_back_by_reclaim() -> None:
    """In a new process: the heap of one that ran long has room for small blocks already."""
    done = subprocess.run([sys.executable, "-c", SMALL_BLOCKS], capture_output=True, check=True)
    held, given_back = map(int, done.stdout.split())
    assert held >= 36 * MIB
    assert given_back < 25 * MIB


@pytest.fixture
def without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Meter:
        raise FileNotFoundError("/proc/self/clear_refs")

    monkeypatch.setattr(meters, "_ResidentMeter", refuse)


@pytest.mark.usefixtures("without_proc")
def test_without_proc_the_high_water_mark_rises_by_more_than_was_ever_used() -> None:
    meter = meter_for(torch.device("cpu"))
    meter.reset()
    assert meter.peak_bytes() == 0
    allocate_and_drop(meters._HighWaterMeter._read() + 64 * MIB)  # above whatever ran before
    first = meter.peak_bytes()
    assert first >= 64 * MIB - PAGES
    meter.reset()
    assert meter.peak_bytes() == first  # it cannot be reset, as documented


@pytest.mark.usefixtures("without_proc")
def test_a_system_without_any_meter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as pretended:
        pretended.setattr("sys.platform", "win32")
        with pytest.raises(RightBatchError, match="got 'win32'"):
            meter_for(torch.device("cpu"))


@pytest.mark.gpu
def test_a_block_on_the_accelerator_shows_and_is_forgotten(device: torch.device) -> None:
    meter = meter_for(device)
    meter.reset()
    allocate_and_drop(64 * MIB, device)
    assert 64 * MIB <= meter.peak_bytes() < 80 * MIB
    meter.reset()
    assert meter.peak_bytes() < MIB
