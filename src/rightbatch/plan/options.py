"""What a plan is asked for, checked before anything is measured for it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real

from rightbatch.errors import CannotPlan

OBJECTIVES = ("time", "cost", "energy")
# What can be named as paid once: for each device beyond those of today, and for any change of
# the batch size (tuning it anew).
UPFRONT = ("per_device", "retuning")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What a plan is asked for; see `rightbatch.plan` for each."""

    objective: str
    devices: tuple[int, ...]  # ascending
    price_per_hour: float | None
    allreduce_gbps: float | None
    deadline_seconds: float | None
    max_cost: float | None
    steps_today: float | None
    upfront_costs: Mapping[str, float]

    @property
    def limited(self) -> bool:
        """Whether a deadline or a budget was given."""
        return self.deadline_seconds is not None or self.max_cost is not None


def check_options(
    objective: str = "time",
    devices: int | Iterable[int] = 1,
    price_per_hour: float | None = None,
    allreduce_gbps: float | None = None,
    deadline_seconds: float | None = None,
    max_cost: float | None = None,
    steps_today: float | None = None,
    upfront_costs: Mapping[str, float] | None = None,
) -> PlanOptions:
    """Refuse options that no plan can be made with; they are those of `rightbatch.plan`.

    Returns:
        The options, with devices in ascending order.

    Raises:
        CannotPlan: If one is out of range, or needs another one.
    """
    _check_objective(objective)
    counts = _device_counts(devices)
    unknown = "Leave it out if unknown."
    _check_positive("price_per_hour", price_per_hour, unknown)
    _check_positive("allreduce_gbps", allreduce_gbps, unknown)
    _check_positive("deadline_seconds", deadline_seconds, "Leave it out if there is none.")
    _check_positive("max_cost", max_cost, "Leave it out if there is none.")
    _check_positive("steps_today", steps_today, unknown)
    if max_cost is not None and price_per_hour is None:
        raise CannotPlan(
            f"`max_cost` needs `price_per_hour`, got max_cost={max_cost:g} alone. "
            "Name the price of one device-hour in the same currency."
        )
    upfront = _checked_upfront(upfront_costs or {}, price_per_hour)
    return PlanOptions(
        objective=objective,
        devices=counts,
        price_per_hour=price_per_hour,
        allreduce_gbps=allreduce_gbps,
        deadline_seconds=deadline_seconds,
        max_cost=max_cost,
        steps_today=steps_today,
        upfront_costs=upfront,
    )


def check_today(steps_today: float | None, batch_size: int | None) -> None:
    """Refuse steps of today's run where the batch size that they are of is not known.

    Raises:
        CannotPlan: If so.
    """
    if steps_today is not None and batch_size is None:
        raise CannotPlan(
            f"`steps_today` counts steps at today's batch size, got {steps_today:g} and no "
            "batch size. Give it to the task: Task(..., batch_size=...)."
        )


def _check_objective(objective: str) -> None:
    if objective not in OBJECTIVES:
        raise CannotPlan(
            f"`objective` must be 'time', 'cost' or 'energy', got {objective!r}. "
            "Only these are reckoned with."
        )


def _device_counts(devices: int | Iterable[int]) -> tuple[int, ...]:
    counts = list(devices) if isinstance(devices, Iterable) else [devices]
    if not counts:
        raise CannotPlan("`devices` must name at least one count, got none. One device is 1.")
    if not all(isinstance(c, Real) and math.isfinite(c) and c == int(c) for c in counts):
        raise CannotPlan(
            f"`devices` must be a whole number or several, got {devices!r}. "
            "Write 4, or [1, 2, 4, 8] for counts to choose from."
        )
    for count in counts:
        if isinstance(count, bool) or count < 1:
            raise CannotPlan(
                f"`devices` must be at least 1, got {count}. Count the devices you have."
            )
    return tuple(sorted({int(count) for count in counts}))


def _check_positive(name: str, value: float | None, remedy: str) -> None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise CannotPlan(f"`{name}` must be positive and finite, got {value}. {remedy}")


def _checked_upfront(
    costs: Mapping[str, float], price_per_hour: float | None
) -> Mapping[str, float]:
    strange = [name for name in costs if name not in UPFRONT]
    if strange:
        raise CannotPlan(
            f"`upfront_costs` knows {' and '.join(map(repr, UPFRONT))}, got {strange[0]!r}. "
            "Add what else is paid once to one of them."
        )
    for name, cost in costs.items():
        if not (math.isfinite(cost) and cost >= 0):
            raise CannotPlan(
                f"`upfront_costs` must not be negative, got {name}={cost}. "
                "Name what is paid once, in the currency of the price."
            )
    if costs and price_per_hour is None:
        raise CannotPlan(
            "`upfront_costs` are weighed against running costs, got no `price_per_hour`. "
            "Name the price of one device-hour in the same currency."
        )
    return dict(costs)
