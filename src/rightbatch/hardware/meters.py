"""Peak memory of a stretch of work, in bytes above what was in use when the meter was made."""

import ctypes
import gc
import sys
from pathlib import Path
from typing import Any, Protocol, final

import torch

from rightbatch.errors import RightBatchError


class Meter(Protocol):
    """A resettable reading of peak memory. Budgets and peaks share its zero."""

    def reset(self) -> None:
        """Give back what is cached, and forget the peak so far."""
        ...

    def peak_bytes(self) -> int:
        """Return the peak since `reset`, above what was in use when the meter was made."""
        ...


def meter_for(device: torch.device) -> Meter:
    """Make the best meter that a device has.

    On a CUDA or XPU device it is the allocator's own peak counter; on Linux the kernel's
    (``VmHWM``, which counts everything the process touches, also outside of torch). Both are
    exact and can be reset. ``mps`` and other systems have a high-water mark only: it cannot be
    reset, so it reads too low after something larger ran before, and never too high.

    Args:
        device: Where the task's tensors live.

    Returns:
        A meter whose zero is the memory in use now.

    Raises:
        RightBatchError: On a system without any of these (Windows, on the CPU).

    Example:
        >>> meter = meter_for(torch.device("cpu"))
        >>> meter.reset()
        >>> block = torch.ones(2**26, dtype=torch.uint8)
        >>> meter.peak_bytes() >= 2**25
        True
    """
    reclaim(device)
    if device.type == "mps":
        return _MpsMeter()
    if device.type != "cpu":
        return _DeviceMeter(device)
    try:
        return _ResidentMeter(Path("/proc/self"))
    except OSError:
        return _HighWaterMeter()


def reclaim(device: torch.device) -> None:
    """Give memory that nothing refers to back to the system.

    Call it outside of any ``except`` block: there the traceback still holds the tensors.
    """
    gc.collect()
    _empty_caches(device)


def _empty_caches(device: torch.device) -> None:
    if device.type == "cpu":
        _trim_heap()
    else:
        torch.get_device_module(device).empty_cache()


def _trim_heap() -> None:
    """Let the C library return freed pages: a small probe must not be charged for a large one."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl has not
        if trim is not None:
            trim(0)


@final
class _ResidentMeter:
    """Resident memory of this process as the Linux kernel counts it."""

    def __init__(self, own: Path) -> None:
        self._status, self._clear = own / "status", own / "clear_refs"
        self.reset()
        self._baseline = self._read("VmRSS:")
        self._files = self._read("RssFile:")

    def reset(self) -> None:
        _empty_caches(torch.device("cpu"))
        self._clear.write_text("5")  # 5: set the peak to the present value

    def peak_bytes(self) -> int:
        # Code of libraries that was read in meanwhile is not memory that a batch needs.
        files = max(0, self._read("RssFile:") - self._files)
        return max(0, self._read("VmHWM:") - self._baseline - files)

    def _read(self, key: str) -> int:
        for line in self._status.read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1]) * 1024
        raise OSError(f"{self._status} has no {key}")


@final
class _HighWaterMeter:
    """The most this process ever used, where nothing better is known."""

    def __init__(self) -> None:
        self._baseline = self._read()

    def reset(self) -> None:
        _empty_caches(torch.device("cpu"))

    def peak_bytes(self) -> int:
        return self._read() - self._baseline

    @staticmethod
    def _read() -> int:
        if sys.platform == "win32":
            raise RightBatchError(
                f"peak memory on the CPU can be read on Linux and macOS, got {sys.platform!r}. "
                "Without it a batch that is too large would be noticed only when the system runs "
                "out: give `max_batch_size` instead of measuring."
            )
        import resource

        high = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return high if sys.platform == "darwin" else high * 1024


@final
class _DeviceMeter:
    """The allocator's own counter on a CUDA or XPU device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._module: Any = torch.get_device_module(device)
        self._baseline = self._module.memory_allocated(device)

    def reset(self) -> None:
        _empty_caches(self._device)
        self._module.reset_peak_memory_stats(self._device)

    def peak_bytes(self) -> int:
        return max(0, self._module.max_memory_allocated(self._device) - self._baseline)


@final
class _MpsMeter:
    """What the MPS driver holds: its cache only grows until it is emptied, so it is a peak."""

    def __init__(self) -> None:
        self._baseline = torch.mps.driver_allocated_memory()

    def reset(self) -> None:
        _empty_caches(torch.device("mps"))

    def peak_bytes(self) -> int:
        torch.mps.synchronize()
        return max(0, torch.mps.driver_allocated_memory() - self._baseline)
