"""How many more bytes this process may use before something kills it or slows it down.

There is no out-of-memory exception on a CPU: the kernel grants what is asked for and kills
the process later. So the limit is read beforehand, from everything that could enforce one.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from rightbatch.errors import RightBatchError

_SHARE_OF_HEADROOM = 0.75  # on a CPU: fragmentation, and whatever other processes will want
_SHARE_OF_DEVICE = 0.9  # on a device of one's own: fragmentation only
_CONTEXT_BYTES = 600 * 2**20  # of a process on a device, with its libraries
_START_BYTES = 300 * 2**20  # of a process in host memory, with its libraries: 265 MiB on Linux
_SHARE_OF_PHYSICAL = 0.5  # where nothing says how much of the machine's memory is free


_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def cpu_budget_bytes(*, proc: Path = _PROC, cgroup: Path = _CGROUP) -> int:
    """Return how many bytes this process may still allocate in host memory.

    ``0.75 * min(headroom)`` over every limit that is in force: the memory limits of this
    process's control group and of all its ancestors (v1, v2 or both), the memory the machine
    has available, and this process's resource limits. Page cache that can be dropped does not
    count as used. Of what processes share, each of the ranks that were launched on this host
    (``LOCAL_WORLD_SIZE``) gets an equal part.

    A container sees its host's memory in ``MemAvailable``, so that number alone is too
    large by whatever factor the container was cut down.

    Args:
        proc: Where process information is mounted.
        cgroup: Where control groups are mounted.

    Returns:
        Bytes above what is in use now, never negative. Where ``proc`` does not exist (macOS),
        three eighths of the physical memory.

    Raises:
        RightBatchError: On a system that does not tell its memory (Windows).

    Example:
        >>> cpu_budget_bytes() > 0
        True

    References:
        https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files
    """
    headrooms = [host_free_bytes(proc=proc, cgroup=cgroup), *_resource_headrooms(proc / "self")]
    return max(0, int(_SHARE_OF_HEADROOM * min(headrooms)))


def host_free_bytes(*, proc: Path = _PROC, cgroup: Path = _CGROUP) -> int:
    """Return this rank's part of the host memory that is free, for it and processes it starts.

    Args:
        proc: Where process information is mounted.
        cgroup: Where control groups are mounted.

    Example:
        >>> host_free_bytes() > 0
        True
    """
    available = _table(proc / "meminfo").get("MemAvailable")
    if available is None:
        available = int(_SHARE_OF_PHYSICAL * _physical_bytes())
    free = min([available, *_cgroup_headrooms(proc / "self" / "cgroup", cgroup)])
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "")
    return free // max(1, int(ranks) if ranks.isdigit() else 1)


def device_budget_bytes(device: torch.device) -> int:
    """Return how many bytes may still be allocated where a task's tensors live.

    Args:
        device: The task's device. ``mps`` shares the host's memory, and swaps long before its
            allocator gives up, so the smaller of both budgets holds there.

    Returns:
        Bytes above what this process has allocated now, a safety margin taken off.

    Example:
        >>> device_budget_bytes(torch.device("cpu")) > 0
        True
    """
    if device.type == "cpu":
        return cpu_budget_bytes()
    module = torch.get_device_module(device)
    if device.type == "mps":
        spare = module.recommended_max_memory() - module.driver_allocated_memory()
        return max(0, min(int(_SHARE_OF_DEVICE * spare), cpu_budget_bytes()))
    return max(0, int(_SHARE_OF_DEVICE * _spare_bytes(module, device)))


def room_beside_bytes(device: torch.device) -> int:
    """Return how many bytes of tensors another process could hold beside what this one does.

    A process takes memory for its context too, or for its libraries where it works in host memory.

    Args:
        device: The task's device. The memory of ``mps`` is the host's.

    Returns:
        Bytes with no margin taken off; negative where there is not even room for the process.

    Example:
        >>> room_beside_bytes(torch.device("cpu")) < host_free_bytes()
        True
    """
    if device.type in ("cpu", "mps"):
        return host_free_bytes() - _START_BYTES
    return _spare_bytes(torch.get_device_module(device), device) - _CONTEXT_BYTES


def _spare_bytes(module: Any, device: torch.device) -> int:
    """Count what is free on a device, or only cached, and may be used by this process."""
    allocated, reserved = module.memory_allocated(device), module.memory_reserved(device)
    try:
        free, total = module.mem_get_info(device)
    except RuntimeError:  # some Intel devices do not tell what other processes use
        total = module.get_device_properties(device).total_memory
        free = total - reserved
    spare = free + reserved - allocated
    own_share = getattr(module, "get_per_process_memory_fraction", None)  # of a newer torch
    if own_share is None:
        return spare
    return min(spare, int(own_share(device.index) * total) - allocated)


def _physical_bytes() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except AttributeError as error:
        raise RightBatchError(
            f"free memory on the CPU can be read on Linux and macOS, got {sys.platform!r}. Without "
            "it a batch that is too large would be noticed only when the system runs out: give "
            "`max_batch_size` instead of measuring."
        ) from error


def _read(path: Path) -> str | None:
    """Read a file that may be absent, unreadable, or vanish with its process."""
    try:
        return path.read_text()
    except OSError:
        return None


def _number(path: Path) -> int | None:
    """Read a file of one number; ``None`` where there is none, or it says "max"."""
    text = (_read(path) or "").strip()
    return int(text) if text.isdigit() else None


def _table(path: Path) -> dict[str, int]:
    """Read lines of ``name value [kB]`` as bytes (or as they are, where no unit is given)."""
    table = {}
    for line in (_read(path) or "").splitlines():
        name, *rest = line.replace(":", " ").split()
        if rest and rest[0].isdigit():
            table[name] = int(rest[0]) * (1024 if rest[-1] == "kB" else 1)
    return table


def _cgroup_headrooms(own: Path, root: Path) -> Iterator[int]:
    for line in (_read(own) or "").splitlines():
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0":  # v2, alone or beside v1
            for mount in (root, root / "unified"):
                for folder in _upwards(mount, path):
                    yield from _headroom_v2(folder)
        elif "memory" in controllers.split(","):
            for folder in _upwards(root / "memory", path):
                yield from _headroom_v1(folder)


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """Yield a group's folder and those of all its ancestors, up to the mount point.

    In a container the path may be the host's, which does not exist here: what does exist
    of it is visited, and the mount point is then the container's own group.
    """
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
    for depth in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:depth])


def _headroom_v2(folder: Path) -> Iterator[int]:
    current = _number(folder / "memory.current")
    if current is None:
        return
    used = current - _table(folder / "memory.stat").get("inactive_file", 0)
    for name in ("memory.max", "memory.high"):  # above "high" the kernel slows the process down
        limit = _number(folder / name)
        if limit is not None:
            yield limit - used


def _headroom_v1(folder: Path) -> Iterator[int]:
    current = _number(folder / "memory.usage_in_bytes")
    limit = _number(folder / "memory.limit_in_bytes")
    if current is not None and limit is not None:  # near 2**63 for "no limit": never the smallest
        yield limit - (current - _table(folder / "memory.stat").get("total_inactive_file", 0))


def _resource_headrooms(own: Path) -> Iterator[int]:
    used = _table(own / "status")
    for line in (_read(own / "limits") or "").splitlines():
        for label, counter in (("Max address space", "VmSize"), ("Max data size", "VmData")):
            if line.startswith(label):
                soft = line.removeprefix(label).split()[0]
                if soft.isdigit() and counter in used:
                    yield int(soft) - used[counter]
