"""Figures of the noise track, the range test and the race. Pure: results in, a figure out."""

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from rightbatch._format import (
    format_count,
    format_interval,
    format_learning_rate,
    format_number,
)
from rightbatch.report.canvas import (
    CHOICE,
    LIMIT,
    MEASURED,
    SECOND,
    TODAY,
    axis,
    axis_range,
    canvas,
    error_bar,
    log_axis,
    log_range,
    marker,
    marks_above,
    round_ticks,
    stretch,
)
from rightbatch.results import LRCurve, NoisePoint, NoiseTrack, RaceEntry, Results

_LEARNING_RATE = "learning rate"
_OPEN_END = 2.5  # how far beyond the largest number an open upper end is drawn


def noise_figure(results: Results) -> go.Figure | None:
    """Draw the noise scale along a training run, and the loss below it on an axis of its own.

    An upper end that the data do not bound is drawn to the top of the figure, with an arrow.
    """
    track = results.track
    if track is None or not track.points:
        return None
    floors = [v for p in track.points for v in (p.low, p.noise_scale, p.high) if v]
    if not floors:
        return None
    figure = canvas(height=460)
    xs = _places(track.points)
    ceiling = _OPEN_END * max(max(p.noise_scale or 0, p.low, p.high or 0) for p in track.points)
    figure.update_layout(
        showlegend=True,
        xaxis=_examples_seen_axis(track.points, xs),
        yaxis=log_axis("noise scale (examples)", [*floors, ceiling], format_count)
        | {"domain": [0.36, 1.0]},
        yaxis2=axis("loss", domain=[0.0, 0.26], anchor="x", rangemode="tozero"),
    )
    figure.add_trace(_interval_bars(track.points, xs, ceiling))
    figure.add_trace(_probes(track.points, xs))
    figure.add_trace(_open_ends(track.points, xs, ceiling))
    figure.add_trace(
        go.Scatter(
            x=xs,
            y=[p.loss for p in track.points],
            mode="lines+markers",
            name="loss",
            yaxis="y2",
            line={"color": SECOND, "width": 1.6, "dash": "dash"},
            marker=marker(SECOND, "square", 6),
            text=[_probe_words(p) for p in track.points],
            hovertemplate="%{text}<extra></extra>",
        )
    )
    _run_average(figure, track)
    return figure


def _probes(points: Sequence[NoisePoint], xs: Sequence[float]) -> go.Scatter:
    """The probes that resolved a noise scale."""
    known = [(x, p) for x, p in zip(xs, points, strict=True) if p.noise_scale is not None]
    return go.Scatter(
        x=[x for x, _ in known],
        y=[p.noise_scale for _, p in known],
        mode="lines+markers",
        name="noise scale",
        line={"color": MEASURED, "width": 2},
        marker=marker(MEASURED),
        text=[_probe_words(p) for _, p in known],
        hovertemplate="%{text}<extra></extra>",
    )


def _places(points: Sequence[NoisePoint]) -> list[float]:
    """Where each probe lies on the log axis; the start, at 0 examples, a step before the first."""
    seen = [p.examples_seen for p in points if p.examples_seen > 0]
    if not seen:
        return [1.0] * len(points)
    step = (seen[-1] / seen[0]) ** (1 / max(1, len(seen) - 1))
    start = seen[0] / min(max(step, 2.0), 10.0)
    return [p.examples_seen if p.examples_seen > 0 else start for p in points]


def _examples_seen_axis(points: Sequence[NoisePoint], xs: Sequence[float]) -> dict[str, object]:
    low, high = log_range(xs, margin=0.06)
    starts = [x for x, p in zip(xs, points, strict=True) if p.examples_seen == 0]
    seen = [p.examples_seen for p in points if p.examples_seen > 0]
    ticks = round_ticks(0.9 * min(seen), 10**high) if seen else []
    return axis(
        "examples seen",
        type="log",
        range=[low, high],
        tickmode="array",
        tickvals=[*starts[:1], *ticks],
        ticktext=[*(["start"] if starts else []), *(format_count(tick) for tick in ticks)],
        anchor="y2",
    )


def _probe_words(point: NoisePoint) -> str:
    scale = format_interval(point.noise_scale, point.low, point.high)
    return (
        f"step {format_count(point.step)}, {format_count(point.examples_seen)} examples seen<br>"
        f"noise scale {scale}<br>loss {format_number(point.loss, 3)}"
    )


def _interval_bars(points: Sequence[NoisePoint], xs: Sequence[float], top: float) -> go.Scatter:
    """One line of separate strokes: error bars could not leave their value out."""
    strokes_x: list[float | None] = []
    strokes_y: list[float | None] = []
    for x, p in zip(xs, points, strict=True):
        strokes_x += [x, x, None]
        strokes_y += [max(p.low, 1e-9), p.high if p.high is not None else top, None]
    return go.Scatter(
        x=strokes_x,
        y=strokes_y,
        mode="lines",
        name="95 % interval",
        line={"color": MEASURED, "width": 5},
        opacity=0.3,
        hoverinfo="skip",
    )


def _open_ends(points: Sequence[NoisePoint], xs: Sequence[float], top: float) -> go.Scatter:
    open_ended = [(x, p) for x, p in zip(xs, points, strict=True) if p.high is None]
    return go.Scatter(
        x=[x for x, _ in open_ended],
        y=[top] * len(open_ended),
        mode="markers",
        name="no upper end",
        visible=bool(open_ended),
        marker=marker(MEASURED, "triangle-up", 11, hollow=True),
        text=[_probe_words(p) for _, p in open_ended],
        hovertemplate="%{text}<br>the upper end is not bounded<extra></extra>",
    )


def _run_average(figure: go.Figure, track: NoiseTrack) -> None:
    if track.run_average is None:
        return
    top = 10 ** axis_range(figure, "yaxis")[1]
    figure.add_shape(
        type="rect", x0=0, x1=1, xref="paper", y0=max(track.low, 1e-9),
        y1=track.high if track.high is not None else top,
        fillcolor=CHOICE, opacity=0.08, line={"width": 0}, layer="below",
    )  # fmt: skip
    figure.add_shape(
        type="line", x0=0, x1=1, xref="paper", y0=track.run_average, y1=track.run_average,
        line={"color": CHOICE, "width": 1.5, "dash": "dot"},
    )  # fmt: skip
    figure.add_annotation(
        x=0.01, xref="paper", y=math.log10(track.run_average), yanchor="bottom", showarrow=False,
        text=f"run average {format_interval(track.run_average, track.low, track.high)}",
        font={"size": 12},
    )  # fmt: skip


def range_test_figure(results: Results) -> go.Figure | None:
    """Draw the range test: the loss against the learning rate, its spread, edge and suggestion.

    The loss axis ends a little above the loss at the smallest rate: what lies beyond diverges.
    """
    curve = results.learning_rate
    if curve is None or not curve.points:
        return None
    figure = canvas()
    rates = [p.learning_rate for p in curve.points]
    figure.update_layout(
        xaxis=log_axis(_LEARNING_RATE, rates, format_learning_rate),
        yaxis=axis("smoothed loss", range=_loss_range(curve)),
    )
    figure.add_trace(
        go.Scatter(
            x=[*rates, *reversed(rates)],
            y=[*(p.high for p in curve.points), *(p.low for p in reversed(curve.points))],
            mode="lines",
            line={"width": 0},
            fill="toself",
            fillcolor=MEASURED,
            opacity=0.22,
            hoverinfo="skip",
            name="spread over repeats",
        )
    )
    figure.add_trace(
        go.Scatter(
            x=rates,
            y=[p.loss for p in curve.points],
            mode="lines",
            name="loss",
            line={"color": MEASURED, "width": 2.2},
            text=[
                f"learning rate {format_learning_rate(p.learning_rate)}<br>loss "
                + format_interval(p.loss, p.low, p.high, number=_loss_words)
                for p in curve.points
            ],
            hovertemplate="%{text}<extra></extra>",
        )
    )
    _mark_rates(figure, curve, results.task.learning_rate, rates)
    return figure


def _loss_range(curve: LRCurve) -> list[float]:
    losses = [p.loss for p in curve.points]
    bottom = min(p.low for p in curve.points)
    top = losses[0] + 0.35 * max(losses[0] - bottom, 0.05 * abs(losses[0]))
    return [bottom - 0.08 * (top - bottom), max(top, min(losses))]


def _mark_rates(
    figure: go.Figure, curve: LRCurve, today: float | None, rates: Sequence[float]
) -> None:
    if curve.low is not None and curve.high is not None:
        stretch(figure, curve.low, curve.high, color=CHOICE)
    named = (
        (curve.suggestion, "suggested", CHOICE, "solid"),
        (curve.edge, "edge", LIMIT, "dash"),
        (today, "today", TODAY, "dot"),
    )
    shown = [
        (rate, f"{name} {format_learning_rate(rate, digits=2)}", color, dash)
        for rate, name, color, dash in named
        if rate is not None and rates[0] <= rate <= rates[-1]
    ]
    marks_above(figure, shown)


def race_figure(results: Results) -> go.Figure | None:
    """Draw the race: each rate's loss at its end, who ran to the end, and who diverged."""
    race = results.race
    if race is None or not race.entries:
        return None
    figure = canvas()
    finished = [e for e in race.entries if e.loss is not None]
    diverged = [e for e in race.entries if e.loss is None]
    rates = [e.learning_rate for e in race.entries]
    furthest = max(e.steps for e in race.entries)
    top = max([e.high or e.loss or 0.0 for e in finished], default=1.0)
    bottom = min([e.low or e.loss or 0.0 for e in finished], default=0.0)
    ceiling = top + 0.15 * max(top - bottom, 0.05 * abs(top), 1e-6)
    ticks = [format_learning_rate(rate, digits=2) for rate in rates]
    figure.update_layout(
        showlegend=True,
        xaxis=axis(
            _LEARNING_RATE, type="log", range=log_range(rates, margin=0.12), tickmode="array",
            tickvals=rates, ticktext=ticks,
        ),
        yaxis=axis("loss at the end of its run"),
    )  # fmt: skip
    if race.low is not None and race.high is not None:
        stretch(figure, race.low, race.high, color=CHOICE)
    for name, entries, hollow in (
        (
            f"ran all {format_count(furthest)} steps",
            [e for e in finished if e.steps == furthest],
            False,
        ),
        ("stopped early", [e for e in finished if e.steps < furthest], True),
    ):
        if entries:
            figure.add_trace(_race_trace(entries, name, hollow=hollow, winner=race.suggestion))
    if diverged:
        figure.add_trace(
            go.Scatter(
                x=[e.learning_rate for e in diverged],
                y=[ceiling] * len(diverged),
                mode="markers",
                name="diverged",
                marker=marker(LIMIT, "x", 10),
                text=[_race_words(e) for e in diverged],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    return figure


def _race_trace(
    entries: Sequence[RaceEntry], name: str, *, hollow: bool, winner: float | None
) -> go.Scatter:
    losses = [e.loss or 0.0 for e in entries]
    lows = [loss if e.low is None else e.low for e, loss in zip(entries, losses, strict=True)]
    highs = [loss if e.high is None else e.high for e, loss in zip(entries, losses, strict=True)]
    won = [e.learning_rate == winner for e in entries]
    look = marker(MEASURED, hollow=hollow) | {
        "color": [CHOICE if w else MEASURED for w in won],
        "symbol": ["diamond" if w else "circle-open" if hollow else "circle" for w in won],
        "size": [14 if w else 9 for w in won],
    }
    return go.Scatter(
        x=[e.learning_rate for e in entries],
        y=losses,
        mode="markers",
        name=name,
        marker=look,
        error_y=error_bar(losses, lows, highs, color=MEASURED),
        text=[_race_words(e) for e in entries],
        hovertemplate="%{text}<extra></extra>",
    )


def _race_words(entry: RaceEntry) -> str:
    loss = format_interval(entry.loss, entry.low, entry.high, number=_loss_words)
    end = "diverged" if entry.loss is None else f"loss {loss}"
    rate = format_learning_rate(entry.learning_rate)
    return f"learning rate {rate}<br>{end} after {format_count(entry.steps)} steps"


def _loss_words(loss: float) -> str:
    return format_number(loss, 3)
