"""Results as sentences: what every face of the report says, in one place.

The text and the page arrange these; neither words a number of its own. All functions are
pure, and say "unknown" or nothing rather than guess where a part was not measured.
"""

import re
from dataclasses import dataclass

from rightbatch._format import (
    format_bytes,
    format_count,
    format_interval,
    format_learning_rate,
    format_number,
    format_ratio,
    format_seconds,
)
from rightbatch.results import (
    Communication,
    CriticalBatchSize,
    EnergyProfile,
    LRCurve,
    LRRace,
    MemoryProfile,
    NoiseScale,
    NoiseTrack,
    Plan,
    Results,
    Status,
    ThroughputProfile,
)

# The instruments, in the order in which a reader meets them, and the parts each one fills.
INSTRUMENTS = {
    "memory": ("memory",),
    "throughput": ("throughput", "communication", "energy"),
    "noise": ("noise", "track", "critical_batch_size"),
    "learning_rate": ("learning_rate", "race"),
}
OUTCOMES = {
    "ok": "fits",
    "over_budget": "over the budget",
    "oom": "out of memory",
    "limit": "over a limit of the system",
    "thrash": "fits, but the allocator ran in circles",
    "killed": "killed by the system",
    "hang": "did not end in time",
    "slow": "too slow to finish",
    "leak": "memory grew with every step",
}
NO_BREAK = "\u00a0"
_NUMBER_AND_UNIT = re.compile(r"(\d) (?=%|(?:[mun]?s|min|h|d|x|[KMGTP]?i?B)\b)")
_JOULES_PER_KWH = 3.6e6
_BOTTLENECKS = {
    "compute": "compute-bound",
    "overhead": "launch-bound",
    "loading": "input-bound",
    "sync": "sync-bound",
    "padding": "padding-bound",
    "thrashing": "thrashing",
    "mixed": "no single limit",
}
_ELSEWHERE = {"loading", "sync", "padding", "thrashing"}  # a larger batch would not help


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was measured, as a sentence, and what to doubt about it."""

    part: str  # attribute of `Results`
    label: str
    text: str  # without a full stop
    doubt: str | None  # a sentence; None: measured as well as was asked for
    status: Status


def measured(results: Results) -> tuple[str, ...]:
    """Name the instruments that left something in the results, in reading order."""
    return tuple(
        name
        for name, parts in INSTRUMENTS.items()
        if any(getattr(results, part) is not None for part in parts)
    )


def subject(results: Results) -> str:
    """Describe the task in one line, without its name."""
    task = results.task
    words = [f"{format_count(task.parameters)} parameters"]
    if task.examples is not None:
        words.append(f"{format_count(task.examples)} examples")
    words.append(task.optimizer)
    if "device" in results.environment:
        words.append(f"on {results.environment['device']}")
    return ", ".join(words)


def all_warnings(results: Results) -> tuple[str, ...]:
    """Gather what preflight found, and what the plan takes for granted."""
    return (*results.task.warnings, *(results.plan.warnings if results.plan else ()))


def headline(results: Results) -> str | None:
    """Say in one sentence what to train with, or why nothing can be said.

    ``None`` for the results of a single instrument: its finding is the headline.
    """
    plan = results.plan
    memory = results.memory
    nothing_fits = memory is not None and memory.status is Status.NOTHING_FITS
    if nothing_fits or (plan is not None and plan.status is Status.NOTHING_FITS):
        return f"Nothing to recommend: {nothing_fits_in(memory)}."
    if plan is not None:
        return _recommendation(plan)
    parts = measured(results)
    if not parts:
        return "Nothing was measured."
    if len(parts) == 1:
        return None
    lacking = [name for name in INSTRUMENTS if name not in parts and name != "learning_rate"]
    if lacking:
        return f"No recommendation yet: {' and '.join(lacking)} not measured."
    return "No recommendation: what was measured does not settle it."


def _recommendation(plan: Plan) -> str:
    keep = plan.current is not None and plan.current.batch_size == plan.batch_size
    size = f"{'Keep' if keep else 'Train with'} batch size {format_count(plan.batch_size)}"
    if plan.learning_rate is None:
        return f"{size}."
    joint = ", with" if keep else " and"
    return f"{size}{joint} learning rate {format_learning_rate(plan.learning_rate)}."


def details(plan: Plan) -> tuple[str, ...]:
    """Say what the recommendation brings, how wide it is, and how to lay it out."""
    chosen = f"Chosen for the least {plan.objective}."
    cost = chosen if plan.objective in ("cost", "energy") else None
    sentences = (_gain(plan), cost, _width(plan), _arrangement(plan), _without_rate(plan))
    # A tie is what the width just said, and the reasons say between which sizes.
    doubt = None if plan.status in (Status.OK, Status.TIE) else plan.status.sentence
    return tuple(s for s in (*sentences, doubt) if s)


def _gain(plan: Plan) -> str | None:
    if plan.current is None or plan.speedup is None:
        return None
    here = plan.current.devices
    if plan.keeps_today:
        return "It is what you train with today."
    ratio = format_interval(plan.speedup, plan.speedup_low, plan.speedup_high, number=format_ratio)
    today = f"today's batch size {format_count(plan.current.batch_size)}"
    if plan.current.batch_size == plan.batch_size and here is None:
        today += " in one pass"
    if here is not None:
        today += f" on {format_count(here)} {'device' if here == 1 else 'devices'}"
    sentence = f"Expect {ratio} the speed of {today}, to the same loss"
    unsure = plan.speedup_low is not None and plan.speedup_low <= 1
    return f"{sentence}; it may be no gain at all." if unsure else f"{sentence}."


def _width(plan: Plan) -> str | None:
    if plan.high is None:
        return f"Any batch size from {format_count(plan.low)} on may be within 5 % of the best."
    if plan.low >= plan.high:
        return None
    ends = f"{format_count(plan.low)} to {format_count(plan.high)}"
    return f"Batch sizes from {ends} are within 5 % of the best."


def _arrangement(plan: Plan) -> str | None:
    if plan.accumulation_steps == 1 and plan.devices == 1:
        return None
    return f"Lay it out as {arrangement_words(plan.micro_batch_size, plan)}."


def arrangement_words(micro_batch_size: int, plan: Plan) -> str:
    """Say how a batch is put together from micro-batches."""
    words = f"{format_count(micro_batch_size)} examples at a time"
    if plan.accumulation_steps > 1:
        words += f" x {plan.accumulation_steps} accumulation steps"
    if plan.devices > 1:
        words += f" x {plan.devices} devices"
    return words


def _without_rate(plan: Plan) -> str | None:
    if plan.learning_rate is not None:
        return None
    return "No learning rate was found for it: tune it at this batch size."


def findings(results: Results) -> tuple[Finding, ...]:
    """Say what each instrument found, one sentence each, in reading order."""
    found: list[Finding] = []

    def add(part: str, label: str, text: str, status: Status) -> None:
        # The critical batch size says where it is from, and memory that nothing fits: once will do.
        said = status is Status.ASSUMED and part == "critical_batch_size"
        said = said or status in (Status.OK, Status.NOTHING_FITS)
        doubt = None if said else status.sentence
        found.append(Finding(part=part, label=label, text=text, doubt=doubt, status=status))

    if results.memory is not None:
        add("memory", "Memory", _memory(results.memory), results.memory.status)
    if results.throughput is not None:
        throughput = results.throughput
        alone = len(measured(results)) == 1
        add("throughput", "Throughput", _throughput(throughput, alone=alone), throughput.status)
    if results.communication is not None:
        together = results.communication
        add("communication", "Communication", _communication(together), together.status)
    if results.energy is not None:
        add("energy", "Energy", _energy(results.energy), results.energy.status)
    if results.noise is not None:
        add("noise", "Noise scale", _noise(results.noise), results.noise.status)
    if results.track is not None:
        add("track", "Noise in a run", _track(results.track), results.track.status)
    if results.critical_batch_size is not None:
        critical = results.critical_batch_size
        add("critical_batch_size", "Critical batch", _critical(critical), critical.status)
    if results.learning_rate is not None:
        curve = results.learning_rate
        add("learning_rate", "Range test", _curve(curve), curve.status)
    if results.race is not None:
        add("race", "Learning rate", _race(results.race), results.race.status)
    return tuple(found)


def nothing_fits_in(memory: MemoryProfile | None) -> str:
    """Say what the smallest size needs, and what there is."""
    if memory is None:
        return "not even one example fits in the memory budget"
    limit = format_bytes(memory.budget_bytes)
    smallest = min((p.batch_size for p in memory.points), default=1)
    known = [p.peak_bytes for p in memory.points if p.batch_size == smallest and p.peak_bytes]
    if not known:
        return f"batch size {smallest} does not fit, limit {limit}"
    if max(known) <= memory.budget_bytes:
        return (
            f"needs more than the limit of {limit} at batch {smallest}: its tensors alone take "
            f"{format_bytes(max(known))}, the rest is what steps need besides"
        )
    return f"needs about {format_bytes(max(known))} at batch {smallest}, limit {limit}"


def none_verified(memory: MemoryProfile) -> str:
    """Say why no size is known to fit."""
    budget = format_bytes(memory.budget_bytes)
    if memory.status is Status.LEAK:
        leaking = min(p.batch_size for p in memory.points if p.outcome == "leak")
        return f"{OUTCOMES['leak']} at batch {format_count(leaking)}, limit {budget}"
    if memory.status is not Status.OUT_OF_TIME:
        return nothing_fits_in(memory)
    text = f"no size was run to its end in time, limit {budget}"
    predicted = [p for p in memory.points if p.source == "fake" and p.outcome == "ok"]
    if predicted:
        most = max(p.batch_size for p in predicted)
        text += f"; by tensors alone up to {format_count(most)} may fit"
    return text


def _memory(memory: MemoryProfile) -> str:
    budget = format_bytes(memory.budget_bytes)
    size = memory.max_verified_batch_size
    if size == 0:
        return none_verified(memory)
    text = f"{format_count(size)} examples were run within {budget}"
    if memory.units_per_example != 1:
        text += f" ({format_count(round(size * memory.units_per_example))} units of the loss)"
    if memory.upper_bound is not None:
        text += f"; more than {format_count(memory.upper_bound)} cannot fit"
    return ". ".join([text, *(note.rstrip(".") for note in memory.notes)])


def _throughput(throughput: ThroughputProfile, *, alone: bool) -> str:
    """Name the limit; say why and what to try where no plan does, or none can help."""
    text = _BOTTLENECKS.get(throughput.bottleneck, throughput.bottleneck)
    if throughput.points:
        text = f"{_rate_and_half(throughput)}; {text}"
    said = throughput.notes
    if alone or throughput.bottleneck in _ELSEWHERE:
        said = (throughput.evidence, throughput.advice, *said)
    return ". ".join((text, *(sentence.rstrip(".") for sentence in said if sentence)))


def _rate_and_half(throughput: ThroughputProfile) -> str:
    best = max(throughput.points, key=lambda point: point.batch_size / point.total_seconds)
    rate = format_number(best.batch_size / best.total_seconds)
    text = f"{rate} examples/s at {format_count(best.batch_size)}"
    if throughput.half_batch_size is not None and throughput.half_batch_size >= 1:
        text += f", half the peak at {format_number(throughput.half_batch_size)}"
    return text


def _communication(found: Communication) -> str:
    seconds = format_interval(found.allreduce_seconds, found.low, found.high, number=format_seconds)
    text = f"{seconds} to average the gradients of {format_count(found.world_size)} ranks alone"
    text += f" ({format_number(found.gbps)} gigabits per second each)"
    if found.sync_step_seconds is not None and found.no_sync_step_seconds is not None:
        text += f"; a step takes {format_seconds(found.sync_step_seconds)} with it"
        text += f" and {format_seconds(found.no_sync_step_seconds)} without"
    return text


def _energy(energy: EnergyProfile) -> str:
    best = min(energy.points, key=lambda point: point.joules_per_step / point.batch_size)
    each = best.joules_per_step / best.batch_size
    text = f"{format_number(each)} J an example at {format_count(best.batch_size)}"
    if energy.price_per_kwh is not None:
        million = 1e6 * each / _JOULES_PER_KWH * energy.price_per_kwh
        text += f", {format_number(million)} to pay for a million of them"
    return text


def _noise(noise: NoiseScale) -> str:
    scale = _examples(noise.noise_scale, noise.low, noise.high)
    text = f"{scale} at the present weights ({format_count(noise.examples_used)} measured)"
    if noise.examples_needed:
        text += f"; {format_number(noise.examples_needed)} more examples would settle it"
    if noise.ghost_batch_size is not None:
        text += f"; of micro-batches of {format_count(noise.ghost_batch_size)} (BatchNorm)"
    if noise.coverage < 1:
        text += f"; {noise.coverage:.1%} of the parameters take part"
    return text


def _track(track: NoiseTrack) -> str:
    text = f"{_examples(track.run_average, track.low, track.high)} on average"
    known = [point for point in track.points if point.noise_scale is not None]
    if len(known) >= 2:
        first, last = known[0], known[-1]
        text += (
            f"; {format_number(first.noise_scale)} at loss {format_number(first.loss)},"
            f" {format_number(last.noise_scale)} at loss {format_number(last.loss)}"
        )
    return text


def _critical(critical: CriticalBatchSize) -> str:
    size = _examples(critical.value, critical.low, critical.high)
    source = {"noise": "from the noise scale", "branch": "from branched runs"}
    words = source.get(critical.source, f"from a {critical.source}")
    return f"{size}, {words}"


def _curve(curve: LRCurve) -> str:
    at = f"at batch size {format_count(curve.batch_size)}"
    rate = format_interval(curve.suggestion, curve.low, curve.high, number=_rate)
    edge = (
        "the loss never rose" if curve.edge is None else f"the loss rises from {_rate(curve.edge)}"
    )
    return f"{rate} {at}; {edge}"


def _race(race: LRRace) -> str:
    at = f"at batch size {format_count(race.batch_size)}"
    if race.suggestion is None:
        return f"no rate won {at}, {len(race.entries)} tried"
    rate = format_interval(race.suggestion, race.low, race.high, number=_rate)
    diverged = sum(entry.loss is None for entry in race.entries)
    text = f"{rate} won a race of {len(race.entries)} {at}"
    return f"{text}; {diverged} diverged" if diverged else text


def _examples(value: float | None, low: float, high: float | None) -> str:
    words = format_interval(value, low, high)
    return words if words == "unknown" else f"{words} examples"


def _rate(value: float) -> str:
    return format_learning_rate(value, digits=2)


def time_spent(results: Results) -> str | None:
    """Say how long the measuring took, and on what."""
    spent = {name: seconds for name, seconds in results.seconds.items() if seconds > 0}
    if not spent:
        return None
    total = format_seconds(sum(spent.values()))
    if len(spent) == 1:
        return f"Took {total}."
    parts = sorted(spent.items(), key=lambda item: -item[1])
    each = ", ".join(f"{name.replace('_', ' ')} {format_seconds(s)}" for name, s in parts)
    return f"Took {total}: {each}."


def printable(text: str) -> str:
    """Make a name from outside safe for one line: no control characters, no line breaks."""
    return "".join(c if c.isprintable() else " " for c in text)


def unbroken(text: str) -> str:
    """Put a no-break space between each number and its unit."""
    return _NUMBER_AND_UNIT.sub(f"\\1{NO_BREAK}", text)
