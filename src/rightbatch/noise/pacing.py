"""How often a monitor measures: as often as its share of the training time allows."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any, final

import torch

from rightbatch._comm import Comm
from rightbatch._time import Clock, synchronize

_TRIALS = 5  # measured steps that tell what measuring costs
_TRIAL_SPACING = 8  # steps between these
_FIRST = 2  # the first steps compile, allocate and warm up
_MOST = 1000  # steps between two measured ones; rarer would tell nothing


@final
class Pace:
    """Decides which steps are measured.

    The first few measured steps tell what one costs. From then on every n-th is measured, n such
    that the cost stays below ``budget`` of the training time; n then never changes again, so
    that a resumed run measures the same steps.

    Args:
        every: Measure every n-th step from the start, whatever it costs; ``None``: find out.
        budget: Share of the training time, in (0, 1).
        clock: Monotonic seconds.
        device: That steps run on. Until the pace is known it is waited for before the clock is
            read; a measured step, which reads numbers, would else pay for all that were begun.
    """

    def __init__(
        self, every: int | None, budget: float, clock: Clock, device: torch.device
    ) -> None:
        self.every = every
        self._budget, self._clock, self._device = budget, clock, device
        self._plain: list[float] = []  # seconds of steps that were not measured
        self._measured: list[float] = []  # seconds of measured steps
        self._own: list[float] = []  # seconds of these that were our own work
        self._working = 0.0
        self._ended: float | None = None
        self._next = 0 if every else _FIRST

    def due(self, step: int) -> bool:
        """Whether to measure a step, counted from 0."""
        return step >= self._next

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count the time inside as our own."""
        begin = self._now()
        try:
            yield
        finally:
            self._working += self._now() - begin

    def ended(self, step: int, comm: Comm, *, measured: bool) -> None:
        """Note that a step ended, and decide when to measure next."""
        now = self._now()
        if self.every is None and self._ended is not None:
            if measured:
                self._measured.append(now - self._ended)
                self._own.append(self._working)
            else:
                self._plain = [*self._plain[-2 * _TRIAL_SPACING :], now - self._ended]
        if measured:
            if self.every is None and len(self._measured) >= _TRIALS and self._plain:
                self.every = self._affordable(comm)
            self._next = step + (self.every or _TRIAL_SPACING)
        self._working = 0.0
        self._ended = self._clock()

    def _now(self) -> float:
        if self.every is None:
            synchronize(self._device)
        return self._clock()

    def _affordable(self, comm: Comm) -> int:
        plain = median(self._plain)
        # Hooks are timed directly; what they slow down elsewhere shows in the whole step only.
        cost = max(median(self._own), median(self._measured) - plain)
        wanted = cost / (self._budget * plain) if plain > 0 else 1.0
        everywhere = comm.sum(torch.tensor([wanted], dtype=torch.float64)).item()
        return min(_MOST, max(1, math.ceil(everywhere / comm.world_size)))

    def state_dict(self) -> dict[str, Any]:
        """Everything but the time of day."""
        return {
            "every": self.every,
            "plain": list(self._plain),
            "measured": list(self._measured),
            "own": list(self._own),
            "next": self._next,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another one stood."""
        self.every, self._next = state["every"], state["next"]
        self._plain, self._measured = list(state["plain"]), list(state["measured"])
        self._own = list(state["own"])
        self._ended = None
