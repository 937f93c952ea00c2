"""Ranks that must try the same sizes: every rank tries for itself, then all take the worst answer.

    which sizes are tried   follows from peaks, times and outcomes, so all of these are agreed on
    whether a way is open   to predict, to send the task elsewhere: for all ranks or for none

No rank communicates while it tries, so one that fails leaves nobody waiting in a collective.
"""

from collections.abc import Callable
from typing import TypeVar, final

import torch

from rightbatch._comm import Comm
from rightbatch.errors import RightBatchError, TaskError
from rightbatch.hardware.isolation import CannotIsolate
from rightbatch.hardware.search import Probe, ProbeOutcome

_OUTCOMES = ("ok", "slow", "leak", "hang", "thrash", "limit", "oom", "killed")  # the worst last
T = TypeVar("T")


@final
class Agreed:
    """A probe whose outcome is the worst of all ranks', and whose peak is the largest.

    Args:
        comm: The ranks; all of them must try the same sizes.
        probe: What a rank does for itself.

    Raises:
        CannotIsolate: On every rank, if there is no room for a process of its own on one.
        TaskError: On every other rank, if the task's own code fails on one.
    """

    def __init__(self, comm: Comm, probe: Probe) -> None:
        self._comm, self._probe = comm, probe

    def __call__(self, size: int) -> ProbeOutcome:
        """Try one size on every rank."""
        if self._comm.world_size == 1:
            return self._probe(size)
        own = on_all_or_none(
            self._comm,
            lambda: self._probe(size),
            f"take a step at batch size {size}",
            kind=CannotIsolate,
        )
        codes = gathered(self._comm, _OUTCOMES.index(own.outcome))
        peaks = gathered(self._comm, -1 if own.peak_bytes is None else own.peak_bytes)
        finished = None if -1 in peaks else max(peaks)
        return ProbeOutcome(_OUTCOMES[max(codes)], finished)


def on_all_or_none(
    comm: Comm, act: Callable[[], T], what: str, *, kind: type[RightBatchError] = TaskError
) -> T:
    """Do something on every rank; where one of them fails, all do. Every rank must call it.

    Args:
        comm: The ranks.
        act: What each does for itself, without communication.
        what: The same in words, for those that were able to.
        kind: An error for which there is another way, to be taken by all ranks then.

    Returns:
        What this rank's own ``act`` returned.

    Raises:
        Exception: This rank's own, unless another's is worse: anything is worse than ``kind``.
        RightBatchError: Of ``kind``, if that is what another rank failed with.
        TaskError: If another rank failed with anything else.

    Example:
        >>> from rightbatch._comm import Alone
        >>> on_all_or_none(Alone(), lambda: 6 * 7, "multiply")
        42
    """
    error: Exception | None = None
    found: list[T] = []
    try:
        found.append(act())
    except Exception as caught:
        error = caught
    own = 0 if error is None else 1 if isinstance(error, kind) else 2
    codes = gathered(comm, own)
    worst = max(codes)
    if error is not None and own == worst:
        raise error
    if worst:
        raise (kind if worst == 1 else TaskError)(
            f"every rank must be able to {what}, got an error on rank {codes.index(worst)}. "
            "Its own output says which."
        ) from error
    return found[0]


def largest(comm: Comm, value: int) -> int:
    """Return the largest of all ranks' values; every rank must call it.

    Example:
        >>> from rightbatch._comm import Alone
        >>> largest(Alone(), 7)
        7
    """
    return max(gathered(comm, value))


def least(comm: Comm, value: int) -> int:
    """Return the smallest of all ranks' values; every rank must call it.

    Example:
        >>> from rightbatch._comm import Alone
        >>> least(Alone(), 7)
        7
    """
    return min(gathered(comm, value))


def gathered(comm: Comm, value: int) -> list[int]:
    """Return all ranks' values, in their order."""
    row = torch.zeros(comm.world_size, dtype=torch.int64)
    row[comm.rank] = value
    return [int(number) for number in comm.sum(row)]
