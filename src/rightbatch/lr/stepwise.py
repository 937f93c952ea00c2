"""A scheduler of torch, which counts steps, read as a schedule that counts examples."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

_ABSOLUTE = ("max_lrs", "eta_min", "min_lrs")  # rates that torch takes as they are


@final
@dataclass(frozen=True, eq=False)
class FromTorch:
    """Any scheduler of torch that counts steps, read at the batch size that it was written for.

    The scheduler runs on an optimizer of its own, as far as it is asked. After its end it is
    level.

    The traps: rates that it is given, such as ``max_lr`` or ``eta_min``, are no factors, so that
    the rate they belong to must be said. And it is played step by step: the first question about
    a late place, as after resuming, takes up to a minute for each million steps before it.

    Args:
        make: Makes the scheduler for an optimizer, as you would for your own.
        batch_size: Examples per step that its lengths assume.
        learning_rate: The first rate of your optimizer; needed where the scheduler is given rates
            of its own.

    Raises:
        TypeError: If ``make`` makes what does not count steps, such as ``ReduceLROnPlateau``.
        ValueError: If ``batch_size`` or ``learning_rate`` is not positive, or ``learning_rate``
            is absent where it is needed.

    Example:
        >>> from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR
        >>> shape = FromTorch(lambda optimizer: StepLR(optimizer, 10, gamma=0.5), batch_size=64)
        >>> [shape(seen) for seen in (0, 639, 640, 1280)]
        [1.0, 1.0, 0.5, 0.25]
        >>> down = lambda optimizer: CosineAnnealingLR(optimizer, 2, eta_min=0.05)
        >>> round(FromTorch(down, batch_size=64, learning_rate=0.1)(128), 4)  # 0.05 / 0.1
        0.5
    """

    make: Callable[[Optimizer], LRScheduler]
    batch_size: int
    learning_rate: float | None = None
    _factors: list[float] = field(default_factory=list, init=False, repr=False)
    _running: list[LRScheduler] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.batch_size > 0:
            raise ValueError(
                f"`batch_size` must be positive, got batch_size={self.batch_size!r}. "
                "It is the one that the scheduler's lengths were chosen for."
            )
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(
                f"`learning_rate` must be positive, got learning_rate={self.learning_rate!r}. "
                "It is the first rate of your optimizer, of which the schedule says a share."
            )
        first_rate = 1.0 if self.learning_rate is None else float(self.learning_rate)
        stand_in = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=first_rate)
        scheduler = self.make(stand_in)
        if not isinstance(scheduler, LRScheduler) or isinstance(scheduler, ReduceLROnPlateau):
            raise TypeError(
                "`make` must make a scheduler of torch that counts steps, got "
                f"{type(scheduler).__name__}. Its rates are not known before the run: step it "
                "yourself."
            )
        given = sorted(set(_absolute_rates(scheduler)))
        if given and self.learning_rate is None:
            raise ValueError(
                f"`learning_rate` must be given where a scheduler has rates of its own, got "
                f"learning_rate=None and {type(scheduler).__name__} with {', '.join(given)}. A "
                "schedule is a share of the first rate: say which one your optimizer starts with."
            )
        self._running.append(scheduler)
        self._factors.append(self._factor())

    def __call__(self, examples: float) -> float:
        """Return the factor after so many examples."""
        (scheduler,) = self._running
        index = int(examples // self.batch_size)
        if isinstance(scheduler, OneCycleLR):  # the only one that refuses to go on
            index = min(index, scheduler.total_steps - 1)
        while len(self._factors) <= index:
            scheduler.optimizer.step()
            scheduler.step()
            self._factors.append(self._factor())
        return self._factors[index]

    def _factor(self) -> float:
        rate = float(self._running[0].get_last_lr()[0])
        return rate if self.learning_rate is None else rate / self.learning_rate


def _absolute_rates(scheduler: LRScheduler) -> Iterator[str]:
    held: dict[str, Any] = vars(scheduler)
    for inner in held.get("_schedulers", ()):
        yield from _absolute_rates(inner)
    for name in _ABSOLUTE:
        rates = held.get(name, 0.0)
        if any(rates if isinstance(rates, list | tuple) else [rates]):
            yield name
    for name in ("max_lr", "swa_lr"):
        if name in scheduler.optimizer.param_groups[0]:
            yield name
