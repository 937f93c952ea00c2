"""What a deadline and a budget allow: seconds and cost of a run whose steps are known.

S_min = steps_today / (1 + B_c / B_today), and seconds = S_min x (seconds per minimal step).
Without the steps of today's run the question is turned round: how many may it need?
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rightbatch.errors import CannotPlan
from rightbatch.plan.options import PlanOptions
from rightbatch.plan.weigh import Weighed

Floats = NDArray[np.float64]

_SECONDS_PER_HOUR = 3600
_QUANTILES = (0.025, 0.5, 0.975)


@dataclass(frozen=True, slots=True)
class RunLength:
    """What one way takes for the whole run, or how long the run may be. ``None``: not known."""

    seconds: tuple[float, float, float] | None  # low, middle, high
    cost: tuple[float, float, float] | None  # low, middle, high
    meets_limits: bool | None
    steps_allowed: tuple[float, float, float] | None  # low, middle, high
    counted_at: int | None  # batch size of the steps allowed
    over_limit: float | None = None  # seconds over the longest that is allowed


@np.errstate(over="ignore", invalid="ignore")  # such options are refused in words
def run_length(weighed: Weighed, way: int, options: PlanOptions, today: int | None) -> RunLength:
    """Reckon what the whole run takes, and whether the limits allow it.

    Args:
        weighed: Ways.
        way: Index of one.
        options: Steps of today's run, price, deadline and budget.
        today: Today's batch size. Without it, steps are counted as the fewest possible.

    Raises:
        CannotPlan: If the options lead to numbers that are too large to be held.
    """
    # Seconds for each step of today's run, shape [draws].
    each = weighed.times[:, way]
    if today is not None:
        each = each / (1 + weighed.critical / today)
    devices = weighed.ways[way].devices
    most = longest_seconds(options, devices)
    price, steps = options.price_per_hour, options.steps_today
    allowed = None
    if most is not None:
        allowed = _three(most / each)
        limits = {"deadline_seconds": options.deadline_seconds, "max_cost": options.max_cost}
        check_finite("The steps of a run allowed", allowed[2], {**limits, "price_per_hour": price})
    if steps is None:
        return RunLength(None, None, None, allowed, today)
    seconds = _three(steps * each)
    check_finite("The seconds of a run", seconds[2], {"steps_today": steps})
    cost = None
    if price is not None:
        per_second = devices * price / _SECONDS_PER_HOUR
        cost = (seconds[0] * per_second, seconds[1] * per_second, seconds[2] * per_second)
        check_finite("The cost of a run", cost[2], {"steps_today": steps, "price_per_hour": price})
    if most is None:
        return RunLength(seconds, cost, None, None, today)
    over = seconds[1] / most if most > 0 else math.inf
    return RunLength(seconds, cost, over <= 1, allowed, today, over)


def longest_seconds(options: PlanOptions, devices: int) -> float | None:
    """Return the longest run that deadline and budget allow on so many devices."""
    limits = [] if options.deadline_seconds is None else [options.deadline_seconds]
    if options.max_cost is not None and options.price_per_hour is not None:
        limits.append(_SECONDS_PER_HOUR * options.max_cost / (devices * options.price_per_hour))
    return min(limits, default=None)


def check_finite(what: str, number: float, given: Mapping[str, float | None]) -> None:
    """Refuse options that lead to a number that cannot be held: nothing can be told from it.

    Args:
        what: The number's name, for the message.
        number: What the options lead to.
        given: The options by name; ``None`` for those that were not given.

    Raises:
        CannotPlan: If so.
    """
    if math.isfinite(number):
        return
    got = ", ".join(f"{name}={value:g}" for name, value in given.items() if value is not None)
    raise CannotPlan(
        f"{what} must be finite, got {got}, which is too large to be told. "
        "Check the units: seconds, steps, and one currency for all prices."
    )


def _three(draws: Floats) -> tuple[float, float, float]:
    low, middle, high = (float(q) for q in np.quantile(draws, _QUANTILES))
    return low, middle, high
