"""What the C library's heap makes of tensors on a CPU: more than is alive, and not twice the same.

    from 32 MiB on     pages of their own, back to the system at once
    smaller            a heap, which keeps what was freed until something fits into it

Under `MALLOC_MMAP_THRESHOLD_` smaller tensors have pages of their own too. The system then clears
every one of them before use, which takes time.
"""

import os
import platform
import sys
from collections.abc import Mapping

import torch

from rightbatch.results import MemoryProfile, Status

_SETTING = "MALLOC_MMAP_THRESHOLD_"
_VALUE = 131072  # bytes; what glibc starts with, before it adapts to what is freed
_TUNABLE = "glibc.malloc.mmap_threshold"  # the same by another name
_MOST_FOR_PAGES = 2**20  # of that setting: above it much stays in the heap
_OTHERS = ("jemalloc", "tcmalloc", "mimalloc")
# Two runs of one size differ by some MiB: kept free, at least and at most these shares.
_NOISE_BYTES, _LEAST_SPARE, _MOST_SPARE = 12 * 2**20, 0.02, 0.08
_WASTE = 1.5  # times what is alive, from where on it is worth a word


def spare_share(device: torch.device, budget_bytes: int) -> float:
    """Return the share of a budget to keep free, since the next run may take more than this one.

    Example:
        >>> spare_share(torch.device("cuda"), 2**30)
        0.0
    """
    if device.type != "cpu":
        return 0.0
    noise = 0.0 if _has_pages(os.environ) else _NOISE_BYTES / budget_bytes
    return max(_LEAST_SPARE, min(_MOST_SPARE, noise))


def heap_note(
    profile: MemoryProfile, device: torch.device, environment: Mapping[str, str] = os.environ
) -> str | None:
    """Say so where the heap takes far more than is alive, and what to do about it.

    Args:
        profile: With predicted and real peaks of one size, or there is nothing to compare.
        device: Of the task.
        environment: Of this process, which every try inherits.
    """
    if device.type != "cpu" or not is_glibc(environment) or _has_pages(environment):
        return None
    if profile.status is Status.CAPPED:
        return None  # nothing larger is wanted
    predicted = {p.batch_size: p.peak_bytes for p in profile.points if p.source == "fake"}
    size = profile.max_verified_batch_size
    real = [p.peak_bytes for p in profile.points if p.source == "real" and p.batch_size == size]
    alive = predicted.get(size)
    if not size or not alive or not real or not real[-1] or real[-1] < _WASTE * alive:
        return None
    return (
        f"Batch size {size} takes {real[-1] / alive:.1f} times what is alive: the C library's heap "
        f"keeps the rest. With {_SETTING}={_VALUE} in the environment of measuring and of training "
        "more fits, at slower steps: time both."
    )


def is_glibc(environment: Mapping[str, str]) -> bool:
    """Whether the heap of this process is glibc's."""
    preloaded = environment.get("LD_PRELOAD", "")
    return (
        sys.platform == "linux"
        and platform.libc_ver()[0] == "glibc"
        and not any(other in preloaded for other in _OTHERS)
    )


def _has_pages(environment: Mapping[str, str]) -> bool:
    """Whether all tensors but small ones have pages of their own, by the user's wish."""
    tunables = dict(
        setting.split("=", 1)
        for setting in environment.get("GLIBC_TUNABLES", "").split(":")
        if "=" in setting
    )
    value = environment.get(_SETTING) or tunables.get(_TUNABLE) or ""
    try:
        return int(value, 0) <= _MOST_FOR_PAGES
    except ValueError:  # not set, or to nothing that glibc takes
        return False
