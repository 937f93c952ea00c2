"""Limits of memory that a process sets itself, and what they tell of distress.

CPU    the kernel refuses more data: ``RLIMIT_DATA``
CUDA   the caching allocator refuses more than a share of the device, and counts its new starts
MPS    the driver refuses more than a share of what it recommends
"""

import sys
from pathlib import Path
from typing import final

import torch


class Limit:
    """No limit, and nothing to tell."""

    def thrashed(self) -> bool:
        """Whether memory had to be given back and asked for again."""
        return False

    def forget(self) -> None:
        """Count such distress from now on."""

    def loosen(self, budget_bytes: int) -> None:
        """Allow so much above what was in use when the limit was made."""

    def lift(self) -> None:
        """Allow everything again."""


def limit_for(device: torch.device, budget_bytes: int, *, enforced: bool = True) -> Limit:
    """Limit what this process may take, above what it has now.

    Args:
        device: Whose memory.
        budget_bytes: On top of what is in use.
        enforced: Whether anything is to be refused; otherwise distress is told all the same.

    Example:
        >>> limit = limit_for(torch.device("cpu"), 2**30)
        >>> limit.lift()
        >>> limit.thrashed()
        False
    """
    if device.type == "cuda":
        return CudaLimit(device, budget_bytes, enforced=enforced)
    if not enforced:
        return Limit()
    if device.type == "cpu" and sys.platform == "linux":
        return _ProcessLimit(budget_bytes)
    return _MpsLimit(budget_bytes) if device.type == "mps" else Limit()


@final
class _ProcessLimit(Limit):
    """The kernel refuses memory above the limit, instead of killing later."""

    def __init__(self, budget_bytes: int) -> None:
        import resource

        self._before = resource.getrlimit(resource.RLIMIT_DATA)
        self._held = self._data_bytes()
        self.loosen(budget_bytes)

    def loosen(self, budget_bytes: int) -> None:
        import resource

        own, hard = self._held + budget_bytes, self._before[1]
        soft = own if hard == resource.RLIM_INFINITY else min(own, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))

    def lift(self) -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, self._before)

    @staticmethod
    def _data_bytes() -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
        return 0


@final
class CudaLimit(Limit):
    """The caching allocator's own limit, and its signs of distress."""

    def __init__(self, device: torch.device, budget_bytes: int, *, enforced: bool = True) -> None:
        self._device, self._enforced = device, enforced
        self._held = torch.cuda.memory_reserved(device)
        self.loosen(budget_bytes)

    def loosen(self, budget_bytes: int) -> None:
        """Allow so much above what was reserved, and count distress from now on."""
        if self._enforced:
            _, total = torch.cuda.mem_get_info(self._device)
            share = (self._held + budget_bytes) / total
            torch.cuda.set_per_process_memory_fraction(min(1.0, share), self._device.index)
        self.forget()

    def thrashed(self) -> bool:
        """Whether the allocator had to give memory back and start again."""
        return self._distress() > self._before

    def forget(self) -> None:
        """Count its new starts from now on."""
        self._before = self._distress()

    def lift(self) -> None:
        """Allow all of the device."""
        torch.cuda.set_per_process_memory_fraction(1.0, self._device.index)

    def _distress(self) -> int:
        stats = torch.cuda.memory_stats(self._device)
        return stats.get("num_alloc_retries", 0) + stats.get("num_ooms", 0)


@final
class _MpsLimit(Limit):
    """A share of what the driver recommends."""

    def __init__(self, budget_bytes: int) -> None:
        self._held = torch.mps.driver_allocated_memory()
        self.loosen(budget_bytes)

    def loosen(self, budget_bytes: int) -> None:
        share = (self._held + budget_bytes) / torch.mps.recommended_max_memory()
        torch.mps.set_per_process_memory_fraction(min(1.0, share))
