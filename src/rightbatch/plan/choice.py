"""Choose a batch size, the devices and a learning rate from results alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rightbatch.plan.candidates import find_today
from rightbatch.plan.costs import compare_costs
from rightbatch.plan.front import find_front, front_point, front_points
from rightbatch.plan.inputs import Inputs, sort_results
from rightbatch.plan.options import PlanOptions, check_options, check_today
from rightbatch.plan.rates import suggest_learning_rate
from rightbatch.plan.reasons import Decision, Speedup, explain, warn
from rightbatch.plan.settings import settings_at
from rightbatch.plan.weigh import Weighed, list_candidates, near_best, weigh
from rightbatch.results import CriticalBatchSize, Current, Plan, Status

# What is worth saying of the critical batch size is worth saying of the plan.
_DOUBTFUL = (Status.UNRESOLVED, Status.AT_LEAST, Status.DIVERGED, Status.NOT_DETERMINED)


def plan(
    *results: Any,
    objective: str = "time",
    devices: int | Sequence[int] = 1,
    price_per_hour: float | None = None,
    allreduce_gbps: float | None = None,
    deadline_seconds: float | None = None,
    max_cost: float | None = None,
    steps_today: float | None = None,
    upfront_costs: Mapping[str, float] | None = None,
) -> Plan:
    r"""Recommend a batch size and a learning rate, from results alone.

    Minimises ``steps(b) x step_seconds(b)`` over the sizes that fit, with accumulation where it
    helps, over 2,000 draws from the inputs' intervals. Among sizes within 5 % of the best the
    smallest is taken, powers of two first. With several device counts, `Plan.front` holds the
    ways that no other beats in both time and cost.

    Trap: step times are interpolated between measured sizes and never extrapolated, so a size
    beyond the largest measured one is reached by accumulation only.

    Args:
        results: Any of ``MemoryProfile``, ``ThroughputProfile`` (needed), ``NoiseScale``,
            ``NoiseTrack`` or ``CriticalBatchSize`` (one is needed), ``LRCurve``, ``LRRace``,
            ``TaskFacts``, ``Communication``, ``EnergyProfile``; or whole `Results` such
            as ``Findings``. Of two of a kind the later counts.
        objective: "time", "cost" (which is the same while the number of devices is fixed), or
            "energy" where an ``EnergyProfile`` is among the results.
        devices: Devices that share a batch, or the counts to choose from. The fewest count as
            what you train on today.
        price_per_hour: Of one device, any currency.
        allreduce_gbps: Gigabits per second that a device sends while gradients are added up;
            what follows from it is marked as assumed. A measured ``Communication`` comes before
            it, for up to twice as many devices. Without either communication counts as free, and
            a warning says so.
        deadline_seconds: The longest that the whole run may take.
        max_cost: The most that the whole run may cost; needs the price.
        steps_today: Optimizer steps of the whole run at today's batch size. Without it, deadline
            and budget are turned into the steps that they allow.
        upfront_costs: What is paid once: "per_device" beyond those of today, "retuning" for a
            change of the batch size; needs the price. Weighed in `Plan.costs`.

    Returns:
        The plan, its candidates, its front and its reasons.

    Raises:
        CannotPlan: If a needed result is missing, nothing fits, or an option is out of range
            (a ``ValueError`` too).

    Example:
        A step costs 1 ms + 1 ms per example, B_c = 64: the optimum is sqrt(1 * 64) = 8, with
        time (1 + 64/8) * 9 = 81. Batch size 4 takes (1 + 64/4) * 5 = 85: a tie, and smaller.

        >>> from rightbatch.results import ThroughputPoint, ThroughputProfile
        >>> points = tuple(
        ...     ThroughputPoint(batch_size=b, step_seconds=t, low=t, high=t, load_seconds=0.0,
        ...                     total_seconds=t)
        ...     for b in (1, 2, 4, 8, 16, 32) for t in [0.001 * (1 + b)])
        >>> throughput = ThroughputProfile(points=points, alpha_seconds=0.001,
        ...     beta_seconds_per_example=0.001, half_batch_size=1.0, bottleneck="compute",
        ...     status=Status.OK)
        >>> critical = CriticalBatchSize(value=64.0, low=64.0, high=64.0, source="sweep",
        ...                              status=Status.OK)
        >>> plan(throughput, critical).batch_size
        4

    References:
        McCandlish et al. (2018), https://arxiv.org/abs/1812.06162, section 2.3: time and steps.
    """
    options = check_options(
        objective=objective,
        devices=devices,
        price_per_hour=price_per_hour,
        allreduce_gbps=allreduce_gbps,
        deadline_seconds=deadline_seconds,
        max_cost=max_cost,
        steps_today=steps_today,
        upfront_costs=upfront_costs,
    )
    return _decide(sort_results(results), options)


def _decide(inputs: Inputs, options: PlanOptions) -> Plan:
    today = inputs.task.batch_size if inputs.task else None
    check_today(options.steps_today, today)
    weighed = weigh(inputs, options)
    candidates = list_candidates(weighed, inputs)
    front = find_front(weighed, candidates, options, today)
    way = weighed.ways[front.chosen]
    stay = find_today(weighed.ways, today)
    current, speedup = _against_today(stay, weighed, front.chosen)
    low, high = near_best(weighed, front.chosen, front.keeping)
    critical = float(np.median(weighed.critical))
    rate, rate_source = suggest_learning_rate(inputs, way.batch_size, critical=critical)
    settings = settings_at(inputs, way.batch_size, rate, rate_source)
    decision = Decision(
        chosen=way,
        row=candidates[front.chosen],
        tied=front.tied[front.chosen],
        candidates=candidates,
        front=front_points(weighed, front, candidates),
        unlimited=front_point(weighed, front, candidates, front.unlimited),
        dominated=front.dominated,
        left_out=weighed.left_out,
        costs=compare_costs(weighed, front, options, stay),
        today=today,
        now=None if stay is None else weighed.ways[stay],
        speedup=speedup,
        rate_source=rate_source,
    )
    return Plan(
        batch_size=way.batch_size,
        micro_batch_size=way.micro_batch_size,
        accumulation_steps=way.accumulation_steps,
        devices=way.devices,
        learning_rate=rate,
        hyperparameters=settings.hyperparameters,
        low=low,
        high=None if inputs.critical.high is None else high,
        objective=options.objective,
        candidates=candidates,
        current=current,
        speedup=speedup.value,
        speedup_low=speedup.low,
        speedup_high=speedup.high,
        reasons=explain(inputs, options, decision),
        status=_status(inputs.critical, decision.tied),
        warnings=(*warn(inputs, options, decision), *settings.warnings),
        front=decision.front,
        costs=decision.costs,
        changes=settings.changes,
    )


def _status(critical: CriticalBatchSize, tied: list[int]) -> Status:
    if critical.status in _DOUBTFUL:
        return critical.status
    return Status.TIE if len(tied) > 1 else Status.OK


def _against_today(
    stay: int | None, weighed: Weighed, chosen: int
) -> tuple[Current | None, Speedup]:
    """Compare with the way that is trained with today."""
    if stay is None:
        return None, Speedup(None, None, None)
    now = weighed.ways[stay]
    ratio = weighed.times[:, stay] / weighed.times[:, chosen]
    low, middle, high = (float(q) for q in np.quantile(ratio, [0.025, 0.5, 0.975]))
    current = Current(
        batch_size=now.batch_size,
        relative_time=middle,
        devices=None if now.devices == weighed.ways[chosen].devices else now.devices,
        micro_batch_size=now.micro_batch_size,
    )
    return current, Speedup(middle, low, high)
