"""Figures of memory and throughput. Pure: results in, a plotly figure out, or ``None``."""

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from rightbatch._format import format_bytes, format_count, format_number, format_seconds
from rightbatch.report.canvas import (
    BATCH_SIZE,
    CHOICE,
    FAINT,
    LIMIT,
    MEASURED,
    SECOND,
    axis,
    batch_axis,
    canvas,
    error_bar,
    log_axis,
    log_range,
    mark,
    marker,
)
from rightbatch.report.words import OUTCOMES
from rightbatch.results import (
    MemoryPoint,
    MemoryProfile,
    Results,
    StepShape,
    ThroughputProfile,
)

_LINE_POINTS = 60
_HATCH = {
    "size": 7,
    "solidity": 0.25,
    "fillmode": "overlay",
    "fgcolor": "#ffffff",
    "fgopacity": 0.6,
}


def memory_figure(results: Results) -> go.Figure | None:
    """Draw peak memory against batch size, with the budget and how each size ended."""
    memory = results.memory
    if memory is None or not memory.points:
        return None
    figure = canvas()
    points = sorted(memory.points, key=lambda point: point.batch_size)
    known = [p.peak_bytes for p in points if p.peak_bytes]
    figure.update_layout(
        xaxis=batch_axis(BATCH_SIZE, [p.batch_size for p in points]),
        yaxis=_bytes_axis([*known, memory.budget_bytes]),
    )
    fits = [p for p in points if p.outcome == "ok" and p.peak_bytes]
    others = [p for p in points if p not in fits]
    figure.add_trace(_memory_trace(fits, memory, "fits"))
    if others:
        figure.add_trace(_memory_trace(others, memory, "does not fit"))
    figure.add_shape(
        type="line", x0=0, x1=1, xref="paper", y0=memory.budget_bytes, y1=memory.budget_bytes,
        line={"color": LIMIT, "width": 1.5, "dash": "dash"},
    )  # fmt: skip
    figure.add_annotation(
        x=0.01, xref="paper", y=math.log10(memory.budget_bytes), yanchor="bottom", showarrow=False,
        text=f"budget {format_bytes(memory.budget_bytes)}", font={"size": 12},
    )  # fmt: skip
    return figure


def _memory_trace(points: Sequence[MemoryPoint], memory: MemoryProfile, name: str) -> go.Scatter:
    """Sizes that did not finish have no peak: they are drawn at the budget, and say so."""
    fits = name == "fits"
    words = [
        f"{format_count(p.batch_size)} examples: {OUTCOMES.get(p.outcome, p.outcome)}, "
        + (f"peak {format_bytes(p.peak_bytes)}" if p.peak_bytes else "no peak known")
        + ("" if p.source == "real" else " (predicted, not run)")
        for p in points
    ]
    color = MEASURED if fits else FAINT
    symbols = [
        ("circle" if fits else "x") + ("" if p.source == "real" else "-open") for p in points
    ]
    return go.Scatter(
        x=[p.batch_size for p in points],
        y=[p.peak_bytes or memory.budget_bytes for p in points],
        mode="lines+markers" if fits else "markers",
        name=name,
        line={"color": color, "width": 2},
        marker={"color": color, "size": 9, "symbol": symbols},
        text=words,
        hovertemplate="%{text}<extra></extra>",
    )


def _bytes_axis(values: Sequence[int]) -> dict[str, object]:
    low, high = log_range(values, margin=0.15)
    powers = range(60)
    ticks = [2**power for power in powers if low <= math.log10(2**power) <= high]
    ticks = ticks[:: max(1, len(ticks) // 8)]
    return axis(
        "peak memory",
        type="log",
        range=[low, high],
        tickmode="array",
        tickvals=ticks,
        ticktext=[format_bytes(tick) for tick in ticks],
    )


def throughput_figure(results: Results) -> go.Figure | None:
    """Draw examples per second against batch size: measured, by the line, and with loading."""
    throughput = results.throughput
    if throughput is None or not throughput.points:
        return None
    figure = canvas()
    points = throughput.points
    sizes = [p.batch_size for p in points]
    computing = _computing(throughput)
    both = [p.batch_size / p.total_seconds for p in points]
    bars = computing["error_y"]
    reach = [y + up for y, up in zip(computing["y"], bars["array"], strict=True)]
    reach += [y - down for y, down in zip(computing["y"], bars["arrayminus"], strict=True)]
    figure.update_layout(
        showlegend=True,
        xaxis=batch_axis(BATCH_SIZE, sizes),
        yaxis=log_axis("examples per second", [*reach, *both], format_number),
    )
    figure.add_trace(_rate_line(throughput))
    if throughput.shape is not None:
        figure.add_trace(_shape_line(throughput, throughput.shape))
    figure.add_trace(computing)
    figure.add_trace(
        go.Scatter(
            x=sizes,
            y=both,
            mode="lines+markers",
            name="with loading",
            line={"color": SECOND, "width": 1.6, "dash": "dash"},
            marker=marker(SECOND, "square", 6),
            text=[
                f"{format_count(p.batch_size)} examples: {format_number(rate, 3)} examples/s, "
                f"{format_seconds(p.total_seconds)} a step"
                for p, rate in zip(points, both, strict=True)
            ],
            hovertemplate="%{text}<extra>with loading</extra>",
        )
    )
    half = throughput.half_batch_size
    if half is not None and sizes[0] <= half <= sizes[-1]:
        mark(figure, half, f"half the peak: {format_number(half)}", color=CHOICE)
    return figure


def _computing(throughput: ThroughputProfile) -> dict[str, Any]:
    """Rates of computing alone; the ends of a rate are the other way round than its time's."""
    points = throughput.points
    rates = [p.batch_size / p.step_seconds for p in points]
    slow = [p.batch_size / p.high for p in points]
    fast = [p.batch_size / p.low if p.low > 0 else p.batch_size / p.step_seconds for p in points]
    return {
        "type": "scatter",
        "x": [p.batch_size for p in points],
        "y": rates,
        "mode": "markers",
        "name": "computing",
        "marker": marker(MEASURED),
        "error_y": error_bar(rates, slow, fast, color=MEASURED),
        "text": [
            f"{format_count(p.batch_size)} examples: {format_number(rate, 3)} examples/s, "
            f"{format_seconds(p.step_seconds)} a step "
            f"({format_seconds(p.low)} to {format_seconds(p.high)})"
            for p, rate in zip(points, rates, strict=True)
        ],
        "hovertemplate": "%{text}<extra>computing</extra>",
    }


def _rate_line(throughput: ThroughputProfile) -> go.Scatter:
    """Draw b / (alpha + beta b) between the sizes that were run, never beyond them."""
    alpha, beta = throughput.alpha_seconds, throughput.beta_seconds_per_example
    sizes = [size for size in _sizes_between(throughput) if alpha + beta * size > 0]
    return go.Scatter(
        x=sizes,
        y=[size / (alpha + beta * size) for size in sizes],
        mode="lines",
        name=f"{format_seconds(alpha)} + {format_seconds(beta)} per example",
        line={"color": MEASURED, "width": 1.6},
        hoverinfo="skip",
    )


def _shape_line(throughput: ThroughputProfile, shape: StepShape) -> go.Scatter:
    """Draw b / (alpha^g + (beta b)^g)^(1/g), in logarithms: a sharp one's powers overflow."""
    alpha, beta = math.log(shape.alpha_seconds), math.log(shape.beta_seconds_per_example)
    sizes = _sizes_between(throughput)
    terms = [sorted((alpha, beta + math.log(size))) for size in sizes]
    logs = [
        more + math.log1p(math.exp(shape.sharpness * (less - more))) / shape.sharpness
        for less, more in terms
    ]
    return go.Scatter(
        x=sizes,
        y=[size / math.exp(log) for size, log in zip(sizes, logs, strict=True)],
        mode="lines",
        name=f"with a bend of sharpness {format_number(shape.sharpness)}",
        line={"color": MEASURED, "width": 1.2, "dash": "dot"},
        hoverinfo="skip",
    )


def _sizes_between(throughput: ThroughputProfile) -> list[float]:
    first, last = throughput.points[0].batch_size, throughput.points[-1].batch_size
    ratio = (last / first) ** (1 / _LINE_POINTS)
    return [first * ratio**i for i in range(_LINE_POINTS + 1)]


def step_time_figure(results: Results) -> go.Figure | None:
    """Draw where a step's time goes at each batch size: fixed cost, computing, loading."""
    throughput = results.throughput
    if throughput is None or not throughput.points:
        return None
    figure = canvas()
    points = throughput.points
    fixed = [min(max(throughput.alpha_seconds, 0.0), p.step_seconds) for p in points]
    parts = (
        ("fixed cost", fixed, FAINT, ""),
        (
            "computing",
            [p.step_seconds - f for p, f in zip(points, fixed, strict=True)],
            MEASURED,
            "",
        ),
        ("loading", [max(0.0, p.total_seconds - p.step_seconds) for p in points], SECOND, "/"),
    )
    for name, seconds, color, pattern in parts:
        figure.add_trace(
            go.Bar(
                x=[format_count(p.batch_size) for p in points],
                y=[100 * s / p.total_seconds for s, p in zip(seconds, points, strict=True)],
                name=name,
                marker={"color": color, "pattern": {"shape": pattern, **_HATCH}},
                text=[
                    f"{format_count(p.batch_size)} examples: {name} {format_seconds(s)} "
                    f"of {format_seconds(p.total_seconds)} a step"
                    for s, p in zip(seconds, points, strict=True)
                ],
                textposition="none",
                hovertemplate="%{text}<extra></extra>",
            )
        )
    figure.update_layout(
        barmode="stack",
        bargap=max(0.25, 1 - 0.12 * len(points)),  # a lone bar is no wall
        showlegend=True,
        xaxis=axis(BATCH_SIZE, type="category"),
        yaxis=axis("share of the step (%)", range=[0, 100]),
    )
    return figure
