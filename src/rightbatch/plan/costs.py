"""What is paid once against what every run pays: stay, another batch here, or more devices.

break-even steps = upfront cost / (running cost of a step today - what replaces it)
"""

import numpy as np

from rightbatch.plan.front import Front
from rightbatch.plan.limits import check_finite
from rightbatch.plan.options import PlanOptions
from rightbatch.plan.weigh import Weighed
from rightbatch.results import CostOption

_SECONDS_PER_HOUR = 3600


def compare_costs(
    weighed: Weighed, front: Front, options: PlanOptions, stay: int | None
) -> tuple[CostOption, ...]:
    """Compare staying as today with the best batch here and with every front of more devices.

    Args:
        weighed: Ways.
        front: The points that more devices can reach.
        options: Price, upfront costs, steps of today's run.
        stay: Index of the way that is trained with today; ``None``: it was not weighed.

    Returns:
        Nothing where no upfront cost was named, or today's way was not weighed. Else "stay"
        first.
    """
    if not options.upfront_costs or options.price_per_hour is None or stay is None:
        return ()
    ways = weighed.ways
    today, here = ways[stay].batch_size, ways[stay].devices
    options_listed = [_option("stay", stay, stay, 0.0, weighed, options)]
    retuning = options.upfront_costs.get("retuning", 0.0)
    per_device = options.upfront_costs.get("per_device", 0.0)
    best = next((i for i in front.tied if ways[i].devices == here), stay)
    if best != stay:
        moved = ways[best].batch_size != today
        name = "other batch here" if moved else "other layout here"
        once = retuning if moved else 0.0
        options_listed.append(_option(name, best, stay, once, weighed, options))
    for index in front.indices:
        way = ways[index]
        if way.devices > here:
            upfront = per_device * (way.devices - here)
            upfront += retuning if way.batch_size != today else 0.0
            options_listed.append(_option("more devices", index, stay, upfront, weighed, options))
    return tuple(options_listed)


@np.errstate(over="ignore", invalid="ignore")  # such options are refused in words
def _option(
    name: str,
    index: int,
    stay: int,
    upfront: float,
    weighed: Weighed,
    options: PlanOptions,
) -> CostOption:
    assert options.price_per_hour is not None
    price_per_second = options.price_per_hour / _SECONDS_PER_HOUR
    # Cost of what one step of today's run becomes, shape [ways].
    per_minimal_step = weighed.times * weighed.devices * price_per_second
    today = weighed.ways[stay].batch_size
    per_step = np.median(per_minimal_step / (1 + weighed.critical / today)[:, None], axis=0)
    saving = float(per_step[stay] - per_step[index])
    steps = options.steps_today
    running = None if steps is None else float(per_step[index]) * steps
    break_even = upfront / saving if saving > 0 else None
    given = {"price_per_hour": options.price_per_hour, "steps_today": steps}
    given |= {f"upfront_costs[{name!r}]": cost for name, cost in options.upfront_costs.items()}
    check_finite("What is saved with each step", saving, given)
    check_finite("What is paid for the first run", upfront + (running or 0.0), given)
    check_finite("The steps that earn back what is paid once", break_even or 0.0, given)
    ratio = weighed.times[:, index] / weighed.times[:, stay]
    return CostOption(
        name=name,
        batch_size=weighed.ways[index].batch_size,
        devices=weighed.ways[index].devices,
        relative_time=float(np.median(ratio)),
        upfront=upfront,
        running=running,
        total=None if running is None else upfront + running,
        break_even_steps=break_even,
        break_even_runs=None if break_even is None or steps is None else break_even / steps,
    )
