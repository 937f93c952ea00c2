"""Figures of the plan: what each batch size would take, and the two curves that make it so."""

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from rightbatch._format import format_count, format_number, format_ratio, format_seconds
from rightbatch.report.canvas import (
    BATCH_SIZE,
    CHOICE,
    FAINT,
    MEASURED,
    SECOND,
    TODAY,
    batch_axis,
    canvas,
    log_axis,
    log_range,
    marker,
    stretch,
)
from rightbatch.report.front_tables import is_chosen
from rightbatch.report.tables import cost_differs, current_candidate, mark, same_devices
from rightbatch.results import Candidate, FrontPoint, Plan, Results, Status

_ROOM = 3.0  # beaten ways further than this beyond the front are not drawn


def plan_figure(results: Results) -> go.Figure | None:
    """Draw relative time, and cost where it differs, against batch size.

    The best way to lay out each batch size makes the line; the choice, the current setting,
    the range within 5 % of the best and the sizes that do not fit are marked.
    """
    plan = _drawable(results)
    if plan is None:
        return None
    figure = canvas(height=420)
    candidates = same_devices(plan)
    sizes = [c.batch_size for c in candidates]
    values = [c.relative_time for c in candidates]
    costs = cost_differs(plan)
    if costs:
        values += [c.relative_cost for c in candidates]
    if plan.current is not None:
        sizes.append(plan.current.batch_size)
        values.append(_current_time(plan))
    figure.update_layout(
        showlegend=True,
        xaxis=batch_axis(BATCH_SIZE, sizes),
        yaxis=log_axis("time to the same loss, over the best", [*values, 1.0], format_ratio),
    )
    _shade_width(figure, plan, sizes)
    best = frontier(plan)
    figure.add_trace(_line(best, [c.relative_time for c in best], "time", MEASURED, "solid"))
    if costs:
        figure.add_trace(_line(best, [c.relative_cost for c in best], "cost", SECOND, "dash"))
    others = [c for c in candidates if c.fits and not any(c is kept for kept in best)]
    _points(figure, plan, others, "other layouts", marker(MEASURED, size=6, hollow=True))
    impossible = [c for c in candidates if not c.fits]
    _points(figure, plan, impossible, "does not fit", marker(FAINT, "x", 9))
    _mark_current(figure, plan)
    chosen = [c for c in candidates if mark(c, plan) == "choice"]
    _points(figure, plan, chosen, "recommended", marker(CHOICE, "diamond", 15))
    return figure


def frontier(plan: Plan) -> list[Candidate]:
    """Keep the fastest layout that fits of each batch size, ascending in batch size.

    On as many devices as are recommended.
    """
    best: dict[int, Candidate] = {}
    for candidate in same_devices(plan):
        rival = best.get(candidate.batch_size)
        if candidate.fits and (rival is None or candidate.relative_time < rival.relative_time):
            best[candidate.batch_size] = candidate
    return [best[size] for size in sorted(best)]


def _drawable(results: Results) -> Plan | None:
    plan = results.plan
    if plan is None or plan.status is Status.NOTHING_FITS or not plan.candidates:
        return None
    return plan


def _shade_width(figure: go.Figure, plan: Plan, sizes: Sequence[int]) -> None:
    right = plan.high if plan.high is not None else 10 ** log_range(sizes, margin=0.06)[1]
    if right > plan.low:
        stretch(figure, plan.low, right, color=CHOICE)


def _line(
    candidates: Sequence[Candidate], values: Sequence[float], name: str, color: str, dash: str
) -> go.Scatter:
    return go.Scatter(
        x=[c.batch_size for c in candidates],
        y=list(values),
        mode="lines+markers",
        name=name,
        line={"color": color, "width": 2.2, "dash": dash},
        marker=marker(color, size=6),
        text=[_words(c) for c in candidates],
        hovertemplate="%{text}<extra></extra>",
    )


def _points(
    figure: go.Figure,
    plan: Plan,
    candidates: Sequence[Candidate],
    name: str,
    look: dict[str, object],
) -> None:
    if not candidates:
        return
    figure.add_trace(
        go.Scatter(
            x=[c.batch_size for c in candidates],
            y=[c.relative_time for c in candidates],
            mode="markers",
            name=name,
            marker=look,
            text=[f"<b>{name}</b><br>{_words(c)}" for c in candidates],
            hovertemplate="%{text}<extra></extra>",
        )
    )


def _mark_current(figure: go.Figure, plan: Plan) -> None:
    """The current setting may not be among the candidates: it has numbers of its own."""
    if plan.current is None or plan.keeps_today:
        return
    candidate = current_candidate(plan)
    time = _current_time(plan)
    words = _words(candidate) if candidate else f"time {format_ratio(time)}"
    figure.add_trace(
        go.Scatter(
            x=[plan.current.batch_size],
            y=[time],
            mode="markers",
            name="today",
            marker=marker(TODAY, "square", 12),
            text=[f"<b>today, {format_count(plan.current.batch_size)} examples</b><br>{words}"],
            hovertemplate="%{text}<extra></extra>",
        )
    )


def _current_time(plan: Plan) -> float:
    """The current setting's time on the candidates' scale: `Current` is over the plan's time."""
    assert plan.current is not None
    chosen = [c.relative_time for c in plan.candidates if mark(c, plan) == "choice"]
    return plan.current.relative_time * (chosen[0] if chosen else 1.0)


def _words(candidate: Candidate) -> str:
    layout = f"{format_count(candidate.batch_size)} examples"
    if candidate.accumulation_steps > 1:
        layout += f", {candidate.accumulation_steps} accumulation steps"
    return (
        f"{layout}<br>time {format_ratio(candidate.relative_time)}, "
        f"cost {format_ratio(candidate.relative_cost)} of the best<br>"
        f"steps {format_ratio(candidate.relative_steps)} of the fewest, "
        f"{format_seconds(candidate.step_seconds)} each"
    )


def trade_off_figure(results: Results) -> go.Figure | None:
    """Draw what the plan multiplies: steps needed fall with the batch size, a step's time grows."""
    plan = _drawable(results)
    best = frontier(plan) if plan is not None else []
    if len(best) < 2:
        return None
    figure = canvas(height=340)
    shortest = min(c.step_seconds for c in best)
    steps = [c.relative_steps for c in best]
    seconds = [c.step_seconds / shortest for c in best]
    figure.update_layout(
        showlegend=True,
        xaxis=batch_axis(BATCH_SIZE, [c.batch_size for c in best]),
        yaxis=log_axis("over the least of each", [*steps, *seconds, 1.0], format_ratio),
    )
    figure.add_trace(_line(best, steps, "steps needed", MEASURED, "solid"))
    figure.add_trace(_line(best, seconds, "time of one step", SECOND, "dash"))
    return figure


def front_figure(results: Results) -> go.Figure | None:
    """Draw cost against time: a point for each number of devices that no other way beats."""
    plan = _drawable(results)
    if plan is None or len(plan.front) < 2:
        return None
    figure = canvas(height=360)
    beaten = [c for c in plan.candidates if c.fits and not _is_on_front(c, plan)]
    # What is far off would squeeze the front into a corner.
    most_time = _ROOM * max(p.relative_time for p in plan.front)
    most_cost = _ROOM * max(p.relative_cost for p in plan.front)
    beaten = [c for c in beaten if c.relative_time < most_time and c.relative_cost < most_cost]
    shown = [*plan.front, *beaten]
    figure.update_layout(
        showlegend=True,
        xaxis=log_axis(
            "time, over the fastest", [1.0, *(p.relative_time for p in shown)], format_ratio
        ),
        yaxis=log_axis(
            "cost (device-hours), over the cheapest",
            [1.0, *(p.relative_cost for p in shown)],
            format_ratio,
        ),
    )
    figure.add_trace(
        go.Scatter(
            x=[c.relative_time for c in beaten],
            y=[c.relative_cost for c in beaten],
            mode="markers",
            name="beaten",
            marker=marker(FAINT, size=5, hollow=True),
            text=[_words(c) for c in beaten],
            hovertemplate="%{text}<extra></extra>",
        )
    )
    figure.add_trace(_front_line(plan))
    for point in plan.front:
        figure.add_annotation(
            x=math.log10(point.relative_time), y=math.log10(point.relative_cost),
            text=f"{point.devices} x", showarrow=False, xanchor="left", yanchor="bottom",
            xshift=7, yshift=3, font={"size": 12},
        )  # fmt: skip
    figure.add_trace(_recommended(plan))
    return figure


def _recommended(plan: Plan) -> go.Scatter:
    chosen = [p for p in plan.front if is_chosen(p, plan)]
    return go.Scatter(
        x=[p.relative_time for p in chosen],
        y=[p.relative_cost for p in chosen],
        mode="markers",
        name="recommended",
        marker=marker(CHOICE, "diamond", 15),
        text=[f"<b>recommended</b><br>{_point_words(p)}" for p in chosen],
        hovertemplate="%{text}<extra></extra>",
    )


def _is_on_front(candidate: Candidate, plan: Plan) -> bool:
    same = (candidate.devices, candidate.batch_size)
    return any((p.devices, p.batch_size) == same for p in plan.front)


def _front_line(plan: Plan) -> go.Scatter:
    front = plan.front
    return go.Scatter(
        x=[p.relative_time for p in front],
        y=[p.relative_cost for p in front],
        # With joules for a third axis the points lie on no line of time against cost.
        mode="markers" if plan.objective == "energy" else "lines+markers",
        name="front",
        line={"color": MEASURED, "width": 1.4, "dash": "dot"},
        marker=marker(MEASURED, size=9),
        text=[_point_words(p) for p in front],
        hovertemplate="%{text}<extra></extra>",
    )


def _point_words(point: FrontPoint) -> str:
    devices = f"{point.devices} {'device' if point.devices == 1 else 'devices'}"
    words = (
        f"{devices}, {format_count(point.batch_size)} examples<br>"
        f"time {format_ratio(point.relative_time)}, cost {format_ratio(point.relative_cost)}"
    )
    if point.seconds is not None:
        words += f"<br>the run takes {format_seconds(point.seconds)}"
    if point.cost is not None:
        words += f", costs {format_number(point.cost, 3)}"
    return words
