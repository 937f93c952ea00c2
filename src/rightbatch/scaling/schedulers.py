"""Schedulers of torch: which rates and which cycles of momentum they compute from."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

Write = Callable[[], None]

_PER_GROUP = ("base_lrs", "max_lrs", "min_lrs", "_last_lr")
_ONE_FOR_ALL = ("eta_min",)


def schedulers_of(scheduler: Any, optimizer: Optimizer) -> tuple[LRScheduler, ...]:
    """Take schedulers out of wrappers and out of each other.

    Args:
        scheduler: One of ``torch.optim.lr_scheduler``, several in a list, ``None``, or what holds
            one as its ``scheduler``, as wrappers for several devices do.
        optimizer: That they must drive.

    Returns:
        Every scheduler, with those inside it.

    Raises:
        TypeError: If something is no scheduler of torch.
        ValueError: If one drives another optimizer.
    """
    if scheduler is None:
        return ()
    if isinstance(scheduler, list | tuple):
        return tuple(found for one in scheduler for found in schedulers_of(one, optimizer))
    if not isinstance(scheduler, LRScheduler):
        inner = getattr(scheduler, "scheduler", None)
        if isinstance(inner, LRScheduler):
            return schedulers_of(inner, optimizer)
        raise TypeError(
            "`scheduler` must be of torch.optim.lr_scheduler, or several in a list, got "
            f"{type(scheduler).__name__}. What rates it computes from is not known: leave it out, "
            "and give it its new rates yourself."
        )
    # A wrapped optimizer is another object, and has the same groups.
    if scheduler.optimizer.param_groups is not optimizer.param_groups:
        raise ValueError(
            "`scheduler` must drive this optimizer, got one of another "
            f"{type(scheduler.optimizer).__name__}. It would put the old rates back here and have "
            "wrong ones there: pass the scheduler that was made for this optimizer."
        )
    inside = vars(scheduler).get("_schedulers", ())
    return (scheduler, *(found for one in inside for found in schedulers_of(one, optimizer)))


def highest_rates(
    optimizer: Optimizer, schedulers: Sequence[LRScheduler]
) -> tuple[float | None, ...]:
    """Find the highest rate of each group that the schedulers hold themselves, if they do."""
    held = [vars(scheduler).get("max_lrs") for scheduler in schedulers]
    num_groups = len(optimizer.param_groups)
    lists = [rates for rates in held if isinstance(rates, list) and len(rates) == num_groups]
    return tuple(
        max((float(rates[index]) for rates in lists), default=None) for index in range(num_groups)
    )


def cycled_momentum(schedulers: Sequence[LRScheduler]) -> str | None:
    """Name the momentum that one of the schedulers sets at each of its steps."""
    for scheduler in schedulers:
        if vars(scheduler).get("cycle_momentum"):
            return "beta1" if vars(scheduler).get("use_beta1") else "momentum"
    return None


def scheduler_moves(schedulers: Sequence[LRScheduler], factors: Sequence[float]) -> Iterator[Write]:
    """Multiply every rate that schedulers compute from.

    Args:
        schedulers: From `schedulers_of`.
        factors: One for each parameter group.

    Yields:
        Functions that set the new numbers; nothing has changed until they are called.
    """
    for scheduler in schedulers:
        held = vars(scheduler)
        for name in _PER_GROUP:
            rates = held.get(name)
            if isinstance(rates, list) and len(rates) == len(factors):
                new = [float(r) * factor for r, factor in zip(rates, factors, strict=True)]
                yield _fill(rates, new)
        for name in _ONE_FOR_ALL:
            if isinstance(held.get(name), int | float):
                yield _set(scheduler, name, held[name] * factors[0])


def write_number(holder: Any, key: Any, value: float) -> None:
    """Set an entry; a tensor is filled, since a captured or compiled step reads that tensor."""
    if isinstance(holder[key], Tensor):
        holder[key].fill_(value)
    else:
        holder[key] = value


def _fill(rates: list[Any], new: Sequence[float]) -> Write:
    def write() -> None:
        for index, rate in enumerate(new):
            write_number(rates, index, rate)

    return write


def _set(holder: Any, name: str, value: Any) -> Write:
    return lambda: setattr(holder, name, value)
