"""The front, its limits and its costs in plain words."""

from collections.abc import Sequence

from rightbatch._format import (
    format_count,
    format_interval,
    format_number,
    format_ratio,
    format_seconds,
)
from rightbatch.plan.candidates import Way
from rightbatch.plan.options import PlanOptions
from rightbatch.results import CostOption, FrontPoint

_OBJECTIVE_WORDS = {"time": "the least time", "cost": "the least cost"}


def explain_front(
    front: tuple[FrontPoint, ...],
    dominated: tuple[int, ...],
    options: PlanOptions,
) -> list[str]:
    """Say which point each objective takes and why, where there is more than one count."""
    if len(front) + len(dominated) < 2:
        return []
    reasons = [_taken(front, objective, options) for objective in _OBJECTIVE_WORDS]
    if options.objective == "energy":
        reasons.append(_taken_for_energy(front))
    if dominated:
        why = "Another count is as fast and costs less."
        if options.objective == "energy":
            why = "What takes the least time or energy there, others beat in time, cost and energy."
        reasons.append(f"Not on the front: {devices_words(dominated)}. {why}")
    return reasons


def _taken(front: tuple[FrontPoint, ...], objective: str, options: PlanOptions) -> str:
    point = next(p for p in front if objective in p.taken_for)
    fastest = min(front, key=lambda p: p.relative_time)
    cheapest = min(front, key=lambda p: p.relative_cost)
    best = fastest if objective == "time" else cheapest
    least = _OBJECTIVE_WORDS[objective]
    words = f"For {objective}: {point_words(point)}, {least} on the front"
    if point is not best:
        saves = "costs less" if objective == "time" else "uses fewer devices"
        words = (
            f"For {objective}: {point_words(point)}, on average within 5 % of {least} "
            f"({point_words(best)}), given the intervals, and {saves}"
        )
    other = cheapest if objective == "time" else fastest
    if other is not point:
        time = format_ratio(point.relative_time / other.relative_time)
        cost = format_ratio(point.relative_cost / other.relative_cost)
        than = "the cheapest" if objective == "time" else "the fastest"
        words += f"; {time} the time and {cost} the cost of {than}"
    return f"{words}{' (the objective asked for)' if objective == options.objective else ''}."


def _taken_for_energy(front: tuple[FrontPoint, ...]) -> str:
    point = next(p for p in front if "energy" in p.taken_for)
    fastest = min(front, key=lambda p: p.relative_time)
    words = (
        f"For energy: {point_words(point)}, the least energy on the front, or on average within "
        "5 % of it, given the intervals"
    )
    if fastest is not point and fastest.relative_energy and point.relative_energy:
        time = format_ratio(point.relative_time / fastest.relative_time)
        joules = format_ratio(point.relative_energy / fastest.relative_energy)
        words += f"; {time} the time and {joules} the energy of the fastest"
    return f"{words} (the objective asked for)."


def explain_limits(
    front: tuple[FrontPoint, ...],
    options: PlanOptions,
    chosen: Way,
    today: int | None,
    free: FrontPoint,
) -> list[str]:
    """Say what deadline and budget change, or how long a run they allow."""
    if not options.limited:
        return []
    limits = limits_words(options)
    if options.steps_today is None:
        return [_allowed(front, limits, today)]
    point = point_of(front, chosen)
    if not any(p.meets_limits for p in front):
        return [
            f"No point of the front keeps {limits}: {point_words(point)} comes nearest, with "
            f"{_length(point)}."
        ]
    words = f"With {limits}: {point_words(point)}, {_length(point)}"
    if _layout(point) == _layout(free):
        words += f"; without, the objective {options.objective} takes the same"
    else:
        time = format_ratio(point.relative_time / free.relative_time)
        cost = format_ratio(point.relative_cost / free.relative_cost)
        words += (
            f"; without, the objective {options.objective} takes {point_words(free)}: this takes "
            f"{time} its time and {cost} its cost"
        )
    over = _may_be_over(point, options)
    return [f"{words}. It may still {over}, as the interval says." if over else f"{words}."]


def _may_be_over(point: FrontPoint, options: PlanOptions) -> str:
    """Say which limits the upper end of an interval does not keep; nothing where all are kept."""
    ends = (
        ("be late", point.seconds_high, options.deadline_seconds),
        ("cost more", point.cost_high, options.max_cost),
    )
    return " or ".join(
        words for words, high, limit in ends if high is not None and limit and high > limit
    )


def point_of(front: tuple[FrontPoint, ...], way: Way) -> FrontPoint:
    """Find the point that a way of the front became."""
    return next(p for p in front if _layout(p) == _layout(way))


def _layout(way: Way | FrontPoint) -> tuple[int, int, int]:
    return way.devices, way.batch_size, way.micro_batch_size


def limits_words(options: PlanOptions) -> str:
    """Name the deadline and the budget."""
    words: list[str] = []
    if options.deadline_seconds is not None:
        words.append(f"a deadline of {format_seconds(options.deadline_seconds)}")
    if options.max_cost is not None:
        apart = " (what is paid once is not in it)" if options.upfront_costs else ""
        words.append(f"a budget of {options.max_cost:g} for each run{apart}")
    return " and ".join(words)


def _allowed(front: tuple[FrontPoint, ...], limits: str, today: int | None) -> str:
    each = [
        f"{format_interval(p.steps_allowed, p.steps_allowed_low, p.steps_allowed_high)} on "
        f"{devices_words((p.devices,))}"
        for p in front
    ]
    kept = f"{limits[0].upper()}{limits[1:]} can be kept if the run needs, "
    if today is None:
        return (
            f"{kept}at a batch so large that more would save no step, at most {'; '.join(each)}. "
            "To have it judged, give today's batch size (Task(batch_size=...)) and the steps of "
            "today's run (--steps-today)."
        )
    return (
        f"{kept}at today's batch size {today}, at most this many steps: {'; '.join(each)}. "
        "Give the steps of today's run (--steps-today) to have it judged."
    )


def _length(point: FrontPoint) -> str:
    """Seconds and cost of the whole run, in words."""
    words = format_interval(
        point.seconds, point.seconds_low, point.seconds_high, number=format_seconds
    )
    if point.cost is None:
        return words
    cost = format_interval(point.cost, point.cost_low, point.cost_high, number=_money)
    return f"{words}, {cost} to pay"


def _money(value: float) -> str:
    return format_number(value, 3)


def explain_costs(costs: tuple[CostOption, ...], options: PlanOptions) -> list[str]:
    """Say when what is paid once is earned back, for each way that is not staying."""
    if options.upfront_costs and not costs:
        return [
            "Upfront costs cannot be weighed: today's batch size is not known, or cannot be made "
            "up of measured sizes on the fewest devices."
        ]
    return [_earned_back(option) for option in costs if option.name != "stay"]


def _earned_back(option: CostOption) -> str:
    what = f"{devices_words((option.devices,))} with batch size {option.batch_size}"
    words = f"{what[0].upper()}{what[1:]} cost{'s' if option.devices == 1 else ''} "
    words += f"{format_number(option.upfront, 3)} once"
    time = format_ratio(option.relative_time)
    if option.break_even_steps is None:
        return (
            f"{words} and no less to run than staying: it never pays in money, but takes "
            f"{time} the time."
        )
    if option.upfront == 0:
        return f"{words} and less to run from the first step, in {time} the time."
    steps = f"{format_number(option.break_even_steps)} of today's steps"
    if option.break_even_runs is not None:
        steps = f"{format_number(option.break_even_runs)} runs ({steps})"
    return f"{words}, earned back after {steps}, in {time} the time."


def point_words(point: FrontPoint) -> str:
    """Name a point of the front."""
    return f"{devices_words((point.devices,))} with batch size {format_count(point.batch_size)}"


def devices_words(counts: tuple[int, ...]) -> str:
    """Write device counts: "1 device", "2 and 4 devices"."""
    return f"{listed(counts)} {'device' if counts == (1,) else 'devices'}"


def listed(numbers: Sequence[int]) -> str:
    """Write numbers in a row: "1, 2 and 4"."""
    words = [str(number) for number in numbers]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
