"""What is paid once against what every run pays: stay, another batch here, or more devices.

break-even steps = upfront cost / (running cost of a step today - what replaces it)
"""

import numpy as np

from rightbatch.plan.front import Front
from rightbatch.plan.options import PlanOptions
from rightbatch.plan.weigh import Weighed
from rightbatch.results import CostOption

_SECONDS_PER_HOUR = 3600


def compare_costs(
    weighed: Weighed, front: Front, options: PlanOptions, today: int | None
) -> tuple[CostOption, ...]:
    """Compare staying as today with the best batch here and with every front of more devices.

    Args:
        weighed: Ways.
        front: The points that more devices can reach.
        options: Price, upfront costs, steps of today's run.
        today: Today's batch size.

    Returns:
        Nothing where no upfront cost was named, or today's batch was not weighed. Else "stay"
        first; the fewest devices that were planned for count as those of today.
    """
    ways, here = weighed.ways, min(way.devices for way in weighed.ways)
    stay = next(
        (i for i, w in enumerate(ways) if w.batch_size == today and w.devices == here), None
    )
    if not options.upfront_costs or options.price_per_hour is None or stay is None:
        return ()
    options_listed = [_option("stay", stay, stay, 0.0, weighed, options, today)]
    retuning = options.upfront_costs.get("retuning", 0.0)
    per_device = options.upfront_costs.get("per_device", 0.0)
    best = next((i for i in front.tied if ways[i].devices == here), stay)
    if best != stay:
        options_listed.append(
            _option("other batch here", best, stay, retuning, weighed, options, today)
        )
    for index in front.indices:
        way = ways[index]
        if way.devices > here:
            upfront = per_device * (way.devices - here)
            upfront += retuning if way.batch_size != today else 0.0
            options_listed.append(
                _option("more devices", index, stay, upfront, weighed, options, today)
            )
    return tuple(options_listed)


def _option(
    name: str,
    index: int,
    stay: int,
    upfront: float,
    weighed: Weighed,
    options: PlanOptions,
    today: int | None,
) -> CostOption:
    assert options.price_per_hour is not None
    assert today is not None
    price_per_second = options.price_per_hour / _SECONDS_PER_HOUR
    # Cost of what one step of today's run becomes, shape [ways].
    per_minimal_step = weighed.times * weighed.devices * price_per_second
    per_step = np.median(per_minimal_step / (1 + weighed.critical / today)[:, None], axis=0)
    saving = float(per_step[stay] - per_step[index])
    steps = options.steps_today
    running = None if steps is None else float(per_step[index]) * steps
    break_even = upfront / saving if saving > 0 else None
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
