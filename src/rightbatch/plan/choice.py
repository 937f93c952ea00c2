"""Choose a batch size and a learning rate from results alone."""

import math
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rightbatch.errors import CannotPlan
from rightbatch.plan.candidates import Way, draw_critical, draw_times, list_ways, step_seconds
from rightbatch.plan.critical import critical_batch_size
from rightbatch.plan.reasons import Speedup, explain
from rightbatch.results import (
    Candidate,
    CriticalBatchSize,
    Current,
    LRCurve,
    LRRace,
    MemoryProfile,
    NoiseScale,
    NoiseTrack,
    Plan,
    Results,
    Status,
    TaskFacts,
    ThroughputProfile,
)
from rightbatch.scaling import default_rule, scale_learning_rate

Floats = NDArray[np.float64]
T = TypeVar("T")

TIE = 0.05  # sizes within 5 % of the best are the same to us
_DRAWS = 2000
_SEED = 0  # a plan is a pure function of results: the same every time
_EDGE_SHARE = 0.5  # a rate that no race confirmed stays below half of where the loss rises


@dataclass(frozen=True, slots=True)
class _Inputs:
    """The results, sorted by kind."""

    throughput: ThroughputProfile
    critical: CriticalBatchSize
    memory: MemoryProfile | None
    curve: LRCurve | None
    race: LRRace | None
    task: TaskFacts | None


def plan(
    *results: Any,
    objective: str = "time",
    devices: int = 1,
    price_per_hour: float | None = None,
) -> Plan:
    r"""Recommend a batch size and a learning rate, from results alone.

    Minimises ``steps(b) x step_seconds(b)`` over the sizes that fit, with accumulation where it
    helps, over 2,000 draws from the inputs' intervals. Among sizes within 5 % of the best the
    smallest is taken, powers of two first.

    Trap: step times are interpolated between measured sizes and never extrapolated, so a size
    beyond the largest measured one is reached by accumulation only.

    Args:
        results: Any of ``MemoryProfile``, ``ThroughputProfile`` (needed), ``NoiseScale``,
            ``NoiseTrack`` or ``CriticalBatchSize`` (one is needed), ``LRCurve``, ``LRRace``,
            ``TaskFacts``; or whole `Results` such as ``Findings``. Of two of a kind the later
            counts.
        objective: "time", or "cost" (which is the same while the number of devices is fixed).
        devices: Devices that share a batch. Communication is not measured: it counts as free.
        price_per_hour: Of one device, any currency; for the reasons' arithmetic.

    Returns:
        The plan, its candidates and its reasons.

    Raises:
        CannotPlan: If a needed result is missing, nothing fits, or an option is out of range
            (a ``ValueError`` too).

    Example:
        A step costs 1 ms + 1 ms per example, B_c = 64: the optimum is sqrt(1 * 64) = 8, with
        time (1 + 64/8) * 9 = 81. Batch size 4 takes (1 + 64/4) * 5 = 85: a tie, and smaller.

        >>> from rightbatch.results import ThroughputPoint
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
    check_options(objective, devices, price_per_hour)
    inputs = _sort(results)
    facts = inputs.task
    weighed = _weigh(inputs, devices)
    chosen, tied = _choose(weighed)
    way = weighed.ways[chosen]
    current, speedup = _against_current(facts, weighed, chosen)
    low, high = _near_best(weighed, chosen)
    rate, rate_source = _learning_rate(inputs, way.batch_size, weighed.critical)
    candidates = _candidates(weighed, inputs.throughput)
    return Plan(
        batch_size=way.batch_size,
        micro_batch_size=way.micro_batch_size,
        accumulation_steps=way.accumulation_steps,
        devices=devices,
        learning_rate=rate,
        hyperparameters=_with_rate(facts, rate),
        low=low,
        high=None if inputs.critical.high is None else high,
        objective=objective,
        candidates=candidates,
        current=current,
        speedup=speedup.value,
        speedup_low=speedup.low,
        speedup_high=speedup.high,
        reasons=explain(
            chosen=way,
            candidates=candidates,
            tied=tied,
            critical=inputs.critical,
            throughput=inputs.throughput,
            memory=inputs.memory,
            current=facts.batch_size if facts else None,
            speedup=speedup,
            rate_source=rate_source,
            devices=devices,
            objective=objective,
            price_per_hour=price_per_hour,
        ),
        status=_status(inputs.critical, tied),
    )


def _with_rate(facts: TaskFacts | None, rate: float | None) -> dict[str, float]:
    today = dict(facts.hyperparameters) if facts else {}
    return today if rate is None else {**today, "lr": rate}


def _status(critical: CriticalBatchSize, tied: list[int]) -> Status:
    if critical.status in (Status.UNRESOLVED, Status.AT_LEAST, Status.DIVERGED):
        return critical.status
    return Status.TIE if len(tied) > 1 else Status.OK


def check_options(objective: str, devices: int, price_per_hour: float | None) -> None:
    """Refuse options that no plan can be made with, before anything is measured for it.

    Raises:
        CannotPlan: If one is out of range.
    """
    if objective == "energy":
        raise CannotPlan(
            "`objective` 'energy' needs measured joules, and none were. Plan for 'time' or 'cost'."
        )
    if objective not in ("time", "cost"):
        raise CannotPlan(f"`objective` must be 'time' or 'cost', got {objective!r}.")
    if devices < 1:
        raise CannotPlan(
            f"`devices` must be at least 1, got {devices}. Count the devices you have."
        )
    if price_per_hour is not None and not price_per_hour > 0:
        raise CannotPlan(
            f"`price_per_hour` must be positive, got {price_per_hour}. Leave it out if unknown."
        )


def _sort(results: tuple[Any, ...]) -> _Inputs:
    flat: list[Any] = []
    for result in results:
        if isinstance(result, Results):
            parts = (getattr(result, field.name) for field in fields(result))
            flat.extend(part for part in parts if part is not None)
        else:
            flat.append(result)

    def last(kind: type[T]) -> T | None:
        return next((part for part in reversed(flat) if isinstance(part, kind)), None)

    throughput = last(ThroughputProfile)
    if throughput is None or not throughput.points:
        raise CannotPlan(
            "a plan needs seconds per step, got no ThroughputProfile with points. "
            "Measure one: rightbatch.measure_throughput(task)."
        )
    # Evidence beats the stand-in: a sweep or a branch comes before the noise. What an earlier
    # plan made of the noise is judged afresh.
    critical = last(CriticalBatchSize)
    if critical is None or critical.source == "noise":
        facts = last(TaskFacts)
        optimizer = facts.optimizer if facts else None
        judged = critical_batch_size(last(NoiseScale), last(NoiseTrack), optimizer=optimizer)
        critical = judged or critical
    if critical is None:
        raise CannotPlan(
            "a plan needs the gradient noise, got no NoiseScale, NoiseTrack or CriticalBatchSize. "
            "Measure it: rightbatch.track_noise(task)."
        )
    return _Inputs(
        throughput, critical, last(MemoryProfile), last(LRCurve), last(LRRace), last(TaskFacts)
    )


@dataclass(frozen=True, slots=True)
class _Weighed:
    """The ways to train, and what each takes in every draw."""

    ways: tuple[Way, ...]
    fits: NDArray[np.bool_]  # [ways]
    times: Floats  # [draws, ways], over S_min
    regret: Floats  # [draws, ways], over the best that fits in the same draw
    critical: float  # median draw of B_c


def _weigh(inputs: _Inputs, devices: int) -> _Weighed:
    facts = inputs.task
    ways = list_ways(
        inputs.throughput,
        inputs.memory,
        devices=devices,
        examples=facts.examples if facts else None,
        current_batch_size=facts.batch_size if facts else None,
    )
    fits = np.array([way.fits for way in ways], dtype=bool)
    if not fits.any():
        raise CannotPlan(_why_nothing_fits(inputs, devices))
    generator = np.random.default_rng(_SEED)
    critical = draw_critical(inputs.critical, _DRAWS, generator)
    times = draw_times(ways, inputs.throughput, critical, generator)
    best = np.where(fits, times, np.inf).min(axis=1)
    return _Weighed(ways, fits, times, times / best[:, None], float(np.median(critical)))


def _why_nothing_fits(inputs: _Inputs, devices: int) -> str:
    smallest = inputs.throughput.points[0].batch_size
    examples = inputs.task.examples if inputs.task else None
    if examples is not None and smallest * devices > examples:
        return (
            f"a batch must not exceed the data set, got {examples} examples for {devices} devices "
            f"of at least {smallest}. Use fewer devices, or time smaller sizes."
        )
    largest = inputs.memory.max_verified_batch_size if inputs.memory else 0
    return (
        f"a batch size must fit, but on a device at most {largest} examples do and the smallest "
        f"size that was timed is {smallest}. Use a smaller model, or a device with more memory."
    )


def _choose(weighed: _Weighed) -> tuple[int, list[int]]:
    """Return the index of the choice, and the round sizes that cannot be told from it."""
    ways = weighed.ways
    expected = np.where(weighed.fits, weighed.regret.mean(axis=0), np.inf)
    ties = [i for i in range(len(ways)) if expected[i] <= (1 + TIE) * expected.min()]
    # Powers of two are the round sizes here; one pass comes before accumulation.
    chosen = min(
        ties,
        key=lambda i: (
            ways[i].accumulation_steps > 1,
            not _is_round(ways[i]),
            ways[i].batch_size,
        ),
    )
    return chosen, [ways[i].batch_size for i in ties if i == chosen or _is_round(ways[i])]


def _is_round(way: Way) -> bool:
    return way.batch_size.bit_count() == 1


def _near_best(weighed: _Weighed, chosen: int) -> tuple[int, int]:
    """Smallest and largest size within 5 % of the best in at least half of the draws."""
    share = (weighed.regret <= 1 + TIE).mean(axis=0)
    near = [
        way.batch_size
        for i, way in enumerate(weighed.ways)
        if weighed.fits[i] and (share[i] >= 0.5 or i == chosen)
    ]
    return min(near), max(near)


def _candidates(weighed: _Weighed, throughput: ThroughputProfile) -> tuple[Candidate, ...]:
    ways = weighed.ways
    seconds = step_seconds(throughput, [way.micro_batch_size for way in ways])
    seconds = seconds * np.array([way.accumulation_steps for way in ways])
    steps = np.array([1 + weighed.critical / way.batch_size for way in ways])
    relative = steps * seconds / (steps * seconds)[weighed.fits].min()
    return tuple(
        Candidate(
            batch_size=way.batch_size,
            micro_batch_size=way.micro_batch_size,
            accumulation_steps=way.accumulation_steps,
            step_seconds=float(seconds[i]),
            relative_steps=float(steps[i]),
            relative_time=float(relative[i]),
            # Every candidate uses the same devices, so device-hours are proportional to time.
            relative_cost=float(relative[i]),
            fits=way.fits,
        )
        for i, way in enumerate(ways)
    )


def _against_current(
    facts: TaskFacts | None, weighed: _Weighed, chosen: int
) -> tuple[Current | None, Speedup]:
    sizes = [way.batch_size for way in weighed.ways]
    if facts is None or facts.batch_size is None or facts.batch_size not in sizes:
        return None, Speedup(None, None, None)
    ratio = weighed.times[:, sizes.index(facts.batch_size)] / weighed.times[:, chosen]
    low, middle, high = (float(q) for q in np.quantile(ratio, [0.025, 0.5, 0.975]))
    current = Current(batch_size=facts.batch_size, relative_time=middle)
    return current, Speedup(middle, low, high)


def _learning_rate(inputs: _Inputs, batch_size: int, critical: float) -> tuple[float | None, str]:
    """Return the rate for this batch size, and where it comes from in words."""
    race, curve, facts = inputs.race, inputs.curve, inputs.task
    if race is not None and race.suggestion is not None:
        rate, origin = race.suggestion, race.batch_size
        raced = any(math.isclose(rate, e.learning_rate, rel_tol=1e-6) for e in race.entries)
        source = f"won a race of {len(race.entries)} rates at batch size {origin}"
        if not raced:
            source = f"lies below the winner of a race at batch size {origin} that ended early"
        if origin == batch_size:
            return rate, source
    elif curve is not None and curve.suggestion is not None:
        rate, origin = curve.suggestion, curve.batch_size
        source = f"was suggested by the range test at batch size {origin}"
    elif facts is not None and facts.learning_rate and facts.batch_size:
        rate, origin = facts.learning_rate, facts.batch_size
        source = f"is today's rate at batch size {origin}"
    else:
        return None, ""
    if origin != batch_size:
        rule = default_rule(facts.optimizer if facts else "SGD")
        rate = scale_learning_rate(rate, origin, batch_size, rule=rule, noise_scale=critical)
        source = f"{source}, scaled by the {rule} rule"
    if curve is not None and curve.edge is not None and rate > _EDGE_SHARE * curve.edge:
        return _EDGE_SHARE * curve.edge, f"{source} and capped at half the edge of stability"
    return rate, source
