"""Why a plan is what it is, in plain words."""

from dataclasses import dataclass

from rightbatch._format import (
    format_bytes,
    format_count,
    format_interval,
    format_number,
    format_ratio,
    format_seconds,
)
from rightbatch.plan.candidates import Way
from rightbatch.plan.front_reasons import (
    devices_words,
    explain_costs,
    explain_front,
    explain_limits,
    listed,
    point_of,
)
from rightbatch.plan.inputs import Inputs
from rightbatch.plan.options import PlanOptions
from rightbatch.plan.step_model import BYTES_PER_GRADIENT, exposed_seconds, is_trusted
from rightbatch.results import (
    Candidate,
    Communication,
    CostOption,
    CriticalBatchSize,
    EnergyProfile,
    FrontPoint,
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What was chosen, and what it was chosen from."""

    chosen: Way
    row: Candidate  # of the chosen way
    tied: list[int]  # batch sizes that cannot be told from the chosen one
    candidates: tuple[Candidate, ...]
    front: tuple[FrontPoint, ...]
    unlimited: FrontPoint  # what would be chosen without deadline and budget
    dominated: tuple[int, ...]  # device counts that another one beats
    left_out: tuple[int, ...]  # device counts that no batch can be shared by
    costs: tuple[CostOption, ...]
    today: int | None
    now: Way | None  # what is trained with today; None: it cannot be made up
    speedup: Speedup
    rate_source: str


_BINDING = 1.05  # the first size that does not fit would be this much faster: say so


def explain(inputs: Inputs, options: PlanOptions, decision: Decision) -> tuple[str, ...]:
    """Say what decided, a sentence or two per reason, the strongest first."""
    chosen, row = decision.chosen, decision.row
    return (
        *_statistics(inputs.critical),
        _hardware(inputs.throughput),
        *_energy(inputs.energy, options),
        _size(decision, options),
        *_ties(decision),
        *_accumulation(chosen),
        *explain_front(decision.front, decision.dominated, options),
        *explain_limits(decision.front, options, chosen, decision.today, decision.unlimited),
        *explain_costs(decision.costs, options),
        *_memory(inputs.memory, decision.candidates, chosen.devices),
        *_against_today(decision),
        *([f"The learning rate {decision.rate_source}."] if decision.rate_source else []),
        *_communication(inputs.communication, chosen, row, options),
        *_cost(chosen, row, options),
    )


def warn(inputs: Inputs, options: PlanOptions, decision: Decision) -> tuple[str, ...]:
    """Say what the plan takes for granted, a sentence each."""
    found: list[str] = []
    measured = inputs.communication
    beyond = tuple(d for d in options.devices if d > 1 and not is_trusted(measured, d))
    if beyond and measured is not None:
        source = "named bandwidth" if options.allreduce_gbps else "measured time, carried over"
        found.append(
            f"Communication was measured on {devices_words((measured.world_size,))}, and may be "
            f"trusted on at most twice as many: on {devices_words(beyond)} it is assumed, from the "
            f"{source}."
        )
    if beyond and measured is None and options.allreduce_gbps is None:
        found.append(
            "Communication counted as free: the times on several devices are the least possible. "
            "Name the bandwidth (--allreduce-gbps), in gigabits per second that a device sends."
        )
    if measured is not None and measured.status is Status.DISAGREE and max(options.devices) > 1:
        low, high = format_seconds(measured.low), format_seconds(measured.high)
        found.append(
            f"Averaging gradients took {low} to {high} when it was measured, so times on several "
            "devices are hardly known. Measure it again where nothing else runs."
        )
    if decision.left_out:
        found.append(
            f"{devices_words(decision.left_out)} cannot share a batch of sizes that were timed "
            "and fit: left out."
        )
    return (*found, *_copied_gradients(inputs, decision.chosen))


def _copied_gradients(inputs: Inputs, chosen: Way) -> list[str]:
    """Warn where there is no room for the copy that data-parallel training keeps of gradients."""
    memory, facts, measured = inputs.memory, inputs.task, inputs.communication
    wrapped = measured is not None and exposed_seconds(measured) is not None
    if memory is None or facts is None or chosen.devices == 1 or wrapped:
        return []
    peaks = [
        (point.batch_size, point.peak_bytes)
        for point in memory.points
        if point.outcome == "ok" and point.batch_size >= chosen.micro_batch_size
    ]
    size, peak = min(peaks, default=(0, None))
    copied = facts.parameters * BYTES_PER_GRADIENT
    if peak is None or peak + copied <= memory.budget_bytes:
        return []
    return [
        f"{chosen.micro_batch_size} examples may not fit on each of {chosen.devices} devices: "
        f"alone {size} took {format_bytes(peak)} of {format_bytes(memory.budget_bytes)}, and "
        f"DistributedDataParallel keeps a copy of the gradients, {format_bytes(copied)}. With "
        "gradient_as_bucket_view=True it keeps none."
    ]


def _size(decision: Decision, options: PlanOptions) -> str:
    chosen, row = decision.chosen, decision.row
    steps = format_number(row.relative_steps)
    # Over the limits the nearest is taken, whatever is saved.
    over = point_of(decision.front, chosen).meets_limits is False
    least = "the least energy" if options.objective == "energy" and not over else "the least time"
    where = there = ""
    if len(options.devices) > 1:
        where, there = f" on {devices_words((chosen.devices,))}", " there"
    return (
        f"Batch size {chosen.batch_size} takes {steps}x the fewest possible steps, at "
        f"{format_seconds(row.step_seconds)} a step{where}: {least}{there}, or on average within "
        "5 % of it, given the intervals."
    )


def _ties(decision: Decision) -> list[str]:
    chosen = decision.chosen.batch_size
    others = [size for size in decision.tied if size != chosen]
    if not others:
        return []
    return [
        f"Cannot distinguish {chosen} from {listed(others)} (within 5 %, given the intervals): "
        "the smaller, rounder size is taken."
    ]


def _accumulation(chosen: Way) -> list[str]:
    if chosen.accumulation_steps == 1:
        return []
    return [
        f"Accumulate {chosen.accumulation_steps} micro-batches of {chosen.micro_batch_size}: "
        "accumulation makes the batch larger, not the device faster."
    ]


def _statistics(critical: CriticalBatchSize) -> list[str]:
    size = format_interval(critical.value, critical.low, critical.high)
    if critical.status is Status.DIVERGED:
        return [f"{Status.DIVERGED.sentence} The critical batch size from before it is {size}."]
    if critical.status is Status.UNRESOLVED:
        return [
            f"The gradient noise could not be resolved (critical batch size: {size}): the choice "
            "hedges over three decades of it. Give it more time."
        ]
    if critical.status is Status.NOT_DETERMINED:
        return [
            f"The runs do not determine the critical batch size ({size}): the choice hedges over "
            "what they leave open."
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
        words += f". Loading is the bottleneck. {throughput.advice}"
    return f"{words.rstrip('. ')}."


def _energy(energy: EnergyProfile | None, options: PlanOptions) -> list[str]:
    if options.objective != "energy" or energy is None:
        return []
    each = format_number(energy.joules_per_example, 3)
    words = f"A step draws {format_number(energy.joules, 3)} J plus {each} J per example, measured"
    if max(options.devices) > 1:
        words += " on one device; what devices draw while gradients are added up is left out"
    return [f"{words}."]


def _memory(
    memory: MemoryProfile | None, candidates: tuple[Candidate, ...], devices: int
) -> list[str]:
    same = [c for c in candidates if c.devices == devices]
    best = min((c.relative_time for c in same if c.fits), default=None)
    better = [c for c in same if best and not c.fits and c.relative_time * _BINDING < best]
    if memory is None or not better:
        return []
    return [
        f"Memory limits the choice: {better[0].batch_size} would be faster but does not fit "
        f"(largest verified: {memory.max_verified_batch_size})."
    ]


def _against_today(decision: Decision) -> list[str]:
    speedup, now, chosen = decision.speedup, decision.now, decision.chosen
    ratio, low, high = speedup.value, speedup.low, speedup.high
    if decision.today is None:
        return []
    if now is None or ratio is None or low is None or high is None:
        return [
            f"Today's {decision.today} cannot be made up of measured sizes on these devices, so "
            "there is no comparison."
        ]
    taken = _taken_to_be(now)
    if now == chosen:
        return [f"That is today's batch size: keep {now.batch_size}{taken}."]
    where = "" if now.devices == chosen.devices else f" on {devices_words((now.devices,))}"
    layout = " in one pass" if not where and now.batch_size == chosen.batch_size else ""
    interval = format_interval(ratio, low, high, number=format_ratio)
    verdict = "" if low > 1 else ", so it may be no faster than today"
    return [
        f"Against today's {now.batch_size}{layout}{where}{taken}, with the rate tuned for each, it "
        f"is {interval} as fast{verdict}."
    ]


def _taken_to_be(now: Way) -> str:
    """Say which layout today's batch is taken to have, where it is not one pass."""
    if now.accumulation_steps == 1:
        return ""
    share = now.batch_size // now.devices
    return (
        f" (taken to be {now.accumulation_steps} passes of {now.micro_batch_size}: one of {share} "
        "was not timed, or does not fit)"
    )


def _communication(
    measured: Communication | None, chosen: Way, row: Candidate, options: PlanOptions
) -> list[str]:
    gbps, exchange = options.allreduce_gbps, chosen.exchange
    if chosen.devices == 1:
        return []
    if measured is None and gbps is None:
        return [
            f"The {chosen.devices} devices are assumed to share the work at no cost: communication "
            "was not measured."
        ]
    adding = f"Adding up the gradients of {chosen.devices} devices"
    of_step = f"of each step ({100 * exchange.seconds / row.step_seconds:.0f} %)"
    if measured is not None and is_trusted(measured, chosen.devices):
        return [f"{adding} takes {_measured_words(measured, chosen, of_step)}."]
    source = "as a ring scales" if gbps is None else f"at {gbps:g} gigabits per second"
    if gbps is not None or measured is None or exposed_seconds(measured) is None:
        source += " and no overlap with computing"
    return [
        f"{adding} is assumed to take {format_seconds(exchange.seconds)} {of_step}, {source}: it "
        "was not measured."
    ]


def _measured_words(measured: Communication, chosen: Way, of_step: str) -> str:
    """Say what adding up gradients takes, with its interval, and what that is of."""
    exchange = chosen.exchange
    words = format_seconds(exchange.seconds)
    if exchange.low < exchange.high:
        ends = (exchange.seconds, exchange.low, exchange.high)
        words = format_interval(*ends, number=format_seconds)
    same = measured.world_size == chosen.devices
    here = devices_words((measured.world_size,))
    words += f" {of_step}, {'measured' if same else f'carried over from {here}'}"
    if exposed_seconds(measured) is not None:
        return f"{words} beside computing; the other end is what it takes alone"
    words += ", with no overlap with computing"
    return f"{words}: at most {format_seconds(exchange.high)}" if same else words


def _cost(chosen: Way, row: Candidate, options: PlanOptions) -> list[str]:
    reasons: list[str] = []
    if options.objective == "cost" and len(options.devices) == 1:
        reasons.append("With the number of devices fixed, the least cost is the least time.")
    if options.price_per_hour is not None:
        per_step = row.step_seconds * chosen.devices * options.price_per_hour / 3600
        million = per_step / row.batch_size * 1e6
        reasons.append(
            f"At {options.price_per_hour:g} per device-hour, a million examples cost {million:.3g}."
        )
    return reasons
