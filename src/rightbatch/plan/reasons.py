"""Why a plan is what it is, in plain words."""

from dataclasses import dataclass

from rightbatch._format import (
    format_count,
    format_interval,
    format_number,
    format_ratio,
    format_seconds,
)
from rightbatch.plan.candidates import Way
from rightbatch.results import (
    Candidate,
    CriticalBatchSize,
    MemoryProfile,
    Status,
    ThroughputProfile,
)


@dataclass(frozen=True, slots=True)
class Speedup:
    """Time at today's batch size over planned time; all ``None`` where today's is unknown."""

    value: float | None
    low: float | None
    high: float | None


_BINDING = 1.05  # the first size that does not fit would be this much faster: say so


def explain(
    *,
    chosen: Way,
    candidates: tuple[Candidate, ...],
    tied: list[int],
    critical: CriticalBatchSize,
    throughput: ThroughputProfile,
    memory: MemoryProfile | None,
    current: int | None,
    speedup: Speedup,
    rate_source: str,
    devices: int,
    objective: str,
    price_per_hour: float | None,
) -> tuple[str, ...]:
    """Say what decided, a sentence or two per reason, the strongest first."""
    row = next(c for c in candidates if c.batch_size == chosen.batch_size)
    reasons = [
        *_statistics(critical),
        _hardware(throughput),
        f"Batch size {chosen.batch_size} takes {format_number(row.relative_steps)}x the fewest "
        f"possible steps, at {format_seconds(row.step_seconds)} a step: the least time, or within "
        "5 % of it.",
    ]
    others = [size for size in tied if size != chosen.batch_size]
    if others:
        reasons.append(
            f"Cannot distinguish {chosen.batch_size} from {_listed(others)} (within 5 %, given the "
            "intervals): the smaller, rounder size is taken."
        )
    if chosen.accumulation_steps > 1:
        reasons.append(
            f"Accumulate {chosen.accumulation_steps} micro-batches of {chosen.micro_batch_size}: "
            "accumulation makes the batch larger, not the device faster."
        )
    reasons.extend(_memory(memory, candidates))
    reasons.extend(_against_today(current, chosen.batch_size, speedup))
    if rate_source:
        reasons.append(f"The learning rate {rate_source}.")
    if devices > 1:
        reasons.append(
            f"The {devices} devices are assumed to share the work at no cost: communication was "
            "not measured."
        )
    reasons.extend(_cost(row, devices, objective, price_per_hour))
    return tuple(reasons)


def _statistics(critical: CriticalBatchSize) -> list[str]:
    size = format_interval(critical.value, critical.low, critical.high)
    if critical.status is Status.DIVERGED:
        return [f"{Status.DIVERGED.sentence} The critical batch size from before it is {size}."]
    if critical.status is Status.UNRESOLVED:
        return [
            f"The gradient noise could not be resolved (critical batch size: {size}): the choice "
            "hedges over three decades of it. Give it more time."
        ]
    if critical.status is Status.AT_LEAST:
        return [f"The critical batch size is {size}: larger batches may pay more than shown here."]
    return [
        f"The critical batch size is {size}: below it a larger batch saves steps almost in "
        "proportion, above it hardly any."
    ]


def _hardware(throughput: ThroughputProfile) -> str:
    alpha = format_seconds(throughput.alpha_seconds)
    beta = format_seconds(throughput.beta_seconds_per_example)
    words = f"Computing a step costs {alpha} plus {beta} per example"
    if throughput.half_batch_size is not None and round(throughput.half_batch_size) > 0:
        half = format_count(round(throughput.half_batch_size))
        words += f", so half the peak speed is reached at {half}"
    if throughput.bottleneck == "loading":
        words += ". Loading comes on top and is the bottleneck: more workers would help most"
    return words + "."


def _memory(memory: MemoryProfile | None, candidates: tuple[Candidate, ...]) -> list[str]:
    better = [c for c in candidates if not c.fits and c.relative_time * _BINDING < 1]
    if memory is None or not better:
        return []
    return [
        f"Memory limits the choice: {better[0].batch_size} would be faster but does not fit "
        f"(largest verified: {memory.max_verified_batch_size})."
    ]


def _against_today(current: int | None, chosen: int, speedup: Speedup) -> list[str]:
    ratio, low, high = speedup.value, speedup.low, speedup.high
    if current is None:
        return []
    if ratio is None or low is None or high is None:
        return [
            f"Today's {current} cannot be made up of measured sizes on these devices, so there is "
            "no comparison."
        ]
    if current == chosen:
        return [f"That is today's batch size: keep {current}."]
    interval = format_interval(ratio, low, high, number=format_ratio)
    verdict = "" if low > 1 else ", so it may be no faster than today"
    return [
        f"Against today's {current}, with the rate tuned for each, it is {interval} as fast"
        f"{verdict}."
    ]


def _cost(row: Candidate, devices: int, objective: str, price_per_hour: float | None) -> list[str]:
    reasons: list[str] = []
    if objective == "cost":
        reasons.append("With the number of devices fixed, the least cost is the least time.")
    if price_per_hour is not None:
        per_step = row.step_seconds * devices * price_per_hour / 3600
        million = per_step / row.batch_size * 1e6
        reasons.append(
            f"At {price_per_hour:g} per device-hour, a million examples cost {million:.3g}."
        )
    return reasons


def _listed(sizes: list[int]) -> str:
    words = [str(size) for size in sizes]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
