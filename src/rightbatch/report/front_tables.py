"""Tables of time against cost: the front of a plan, and what is paid once."""

from rightbatch._format import (
    format_count,
    format_number,
    format_ratio,
    format_seconds,
)
from rightbatch.report.table import Row, Table
from rightbatch.results import CostOption, FrontPoint, Plan


def plan_tables(plan: Plan) -> tuple[Table, ...]:
    """Tabulate the front and the costs, where there is more to them than the choice.

    Args:
        plan: A plan.

    Returns:
        Tables with rows.
    """
    tables: list[Table] = []
    if says_more_than_the_choice(plan):
        tables.append(_front_table(plan))
    if plan.costs:
        tables.append(_costs_table(plan))
    return tuple(tables)


def says_more_than_the_choice(plan: Plan) -> bool:
    """Whether the front has several points, or knows how long a run takes or may take."""
    known = any(p.seconds is not None or p.steps_allowed is not None for p in plan.front)
    return len(plan.front) > 1 or known


def is_chosen(point: FrontPoint, plan: Plan) -> bool:
    """Whether the plan recommends this point."""
    ours = plan.devices, plan.batch_size, plan.micro_batch_size
    return (point.devices, point.batch_size, point.micro_batch_size) == ours


def _front_table(plan: Plan) -> Table:
    has_seconds = any(p.seconds is not None for p in plan.front)
    has_cost = any(p.cost is not None for p in plan.front)
    has_allowed = not has_seconds and any(p.steps_allowed is not None for p in plan.front)
    has_energy = plan.objective == "energy"
    header = ["devices", "batch size", "time", "cost", *(["energy"] if has_energy else [])]
    header += ["run takes", "at most"] if has_seconds else []
    header += ["run costs", "at most"] if has_cost else []
    header += ["steps allowed", "surely"] if has_allowed else []
    rows: list[Row] = []
    for point in plan.front:
        cells = [
            format_count(point.devices),
            format_count(point.batch_size),
            format_ratio(point.relative_time),
            format_ratio(point.relative_cost),
        ]
        if has_energy:
            cells.append(format_ratio(point.relative_energy))
        if has_seconds:
            cells += [format_seconds(point.seconds), format_seconds(point.seconds_high)]
        if has_cost:
            cells += [format_number(point.cost, 3), format_number(point.cost_high, 3)]
        if has_allowed:
            cells += [format_number(point.steps_allowed), format_number(point.steps_allowed_low)]
        chosen = is_chosen(point, plan)
        mark = "choice" if chosen else "impossible" if point.meets_limits is False else ""
        rows.append(Row(cells=(*cells, _remark(point, plan)), mark=mark))
    return Table(
        title="Front: no other way is "
        + ("faster, cheaper and thriftier" if has_energy else "both faster and cheaper"),
        header=(*header, ""),
        rows=tuple(rows),
        note=_note(plan, has_seconds=has_seconds, has_allowed=has_allowed),
    )


def _remark(point: FrontPoint, plan: Plan) -> str:
    words = ["recommended"] if is_chosen(point, plan) else []
    words += [f"for {name}" for name in point.taken_for]
    words += ["over the limits"] if point.meets_limits is False else []
    return ", ".join(words)


def _note(plan: Plan, *, has_seconds: bool, has_allowed: bool) -> str:
    note = "for time, for cost: what that objective takes, the least on average or within 5 % of "
    note += "it; time: over the fastest; cost: device-hours, over the cheapest"
    if plan.objective == "energy":
        note += "; energy: joules over the least"
    if has_seconds:
        note += "; at most: the upper end of the 95 % interval"
    if has_allowed:
        today = plan.front[0].counted_at
        at = "of the fewest possible" if today is None else f"at today's batch size {today}"
        note += f"; steps allowed: {at}, within the limits asked for; surely: the lower end of "
        note += "the 95 % interval"
    if plan.costs and any(point.cost is not None for point in plan.front):
        note += "; run costs: each run, without what is paid once"
    if any(point.assumed for point in plan.front):
        note += "; times on several devices are assumed, not measured"
    return f"{note}."


def _costs_table(plan: Plan) -> Table:
    known = any(option.running is not None for option in plan.costs)
    running = ("one run", "first run") if known else ()
    rows = (
        Row(
            cells=(
                option.name,
                format_count(option.devices),
                format_count(option.batch_size),
                format_ratio(option.relative_time),
                format_number(option.upfront, 3),
                *((format_number(option.running, 3), format_number(option.total, 3)) * known),
                _break_even(option),
            ),
            mark="current" if option.name == "stay" else "",
        )
        for option in plan.costs
    )
    return Table(
        title="What is paid once, and in every run",
        header=("", "devices", "batch size", "time", "once", *running, "earned back"),
        rows=tuple(rows),
        note=(
            "time: over staying as today; costs in the currency of the price, first run: both "
            "kinds together."
        ),
    )


def _break_even(option: CostOption) -> str:
    if option.name == "stay":
        return "-"
    if option.break_even_steps is None:
        return "never"
    if option.break_even_runs is None:
        return f"after {format_number(option.break_even_steps)} steps"
    return f"after {format_number(option.break_even_runs)} runs"
