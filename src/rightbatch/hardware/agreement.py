"""Ranks that must try the same sizes: every rank tries for itself, then all take the worst answer.

No rank communicates while it tries, so one that fails leaves nobody waiting in a collective.
"""

from typing import final

import torch

from rightbatch._comm import Comm
from rightbatch.errors import TaskError
from rightbatch.hardware.search import Probe, ProbeOutcome

_OUTCOMES = ("ok", "slow", "leak", "hang", "thrash", "limit", "oom", "killed")  # the worst last
_ERROR = len(_OUTCOMES)


@final
class Agreed:
    """A probe whose outcome is the worst of all ranks', and whose peak is the largest.

    Args:
        comm: The ranks; all of them must try the same sizes.
        probe: What a rank does for itself.

    Raises:
        TaskError: On every other rank, if the task's own code fails on one.
    """

    def __init__(self, comm: Comm, probe: Probe) -> None:
        self._comm, self._probe = comm, probe

    def __call__(self, size: int) -> ProbeOutcome:
        """Try one size on every rank."""
        if self._comm.world_size == 1:
            return self._probe(size)
        error: Exception | None = None
        code, peak = _ERROR, -1
        try:
            own = self._probe(size)
        except Exception as caught:
            error = caught
        else:
            code = _OUTCOMES.index(own.outcome)
            peak = -1 if own.peak_bytes is None else own.peak_bytes
        codes, peaks = gathered(self._comm, code), gathered(self._comm, peak)
        if error is not None:
            raise error
        if _ERROR in codes:
            raise TaskError(
                f"every rank must be able to take a step, got an error on rank "
                f"{codes.index(_ERROR)} at batch size {size}. Its own output says which."
            )
        finished = None if -1 in peaks else max(peaks)
        return ProbeOutcome(_OUTCOMES[max(codes)], finished)


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
