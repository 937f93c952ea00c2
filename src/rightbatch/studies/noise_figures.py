"""The figures of the study of noise estimators. Pure: looks in, plotly's JSON out."""

from collections.abc import Mapping, Sequence
from statistics import median

import plotly.graph_objects as go

from rightbatch._format import format_count, format_number
from rightbatch.report.canvas import (
    CHOICE,
    FAINT,
    LIMIT,
    MEASURED,
    SECOND,
    TODAY,
    axis,
    canvas,
    error_bar,
    log_axis,
    log_range,
    marker,
)
from rightbatch.studies.noise_run import Course, Look, corrected_name, stored_name
from rightbatch.studies.noise_verdicts import GOOD, Accuracy
from rightbatch.studies.study import Drawing

_FACTOR = "typically off by a factor of"
_WORST = 100.0  # factors beyond it are drawn at the top: wrong is wrong
_Style = tuple[str, str, str]  # label, colour, symbol: a way looks the same in every figure


def _styles(course: Course) -> dict[str, _Style]:
    return {
        "average": ("(a) averages, 0.99", LIMIT, "triangle-up"),
        "average_adam": ("(a) averages, 0.9/0.999", LIMIT, "triangle-down"),
        stored_name(course.stored[-1]): (f"(b) {course.stored[-1]} stored", SECOND, "square"),
        "two_runs": ("(c) two runs", FAINT, "x"),
        "consecutive": ("(d) consecutive, 0.99", TODAY, "diamond"),
        "consecutive_slow": ("(d) consecutive, 0.999", TODAY, "diamond-tall"),
        "consecutive_frozen": ("(d) standing still", TODAY, "cross"),
        "probe": ("frozen probe", CHOICE, "circle"),
        "monitor": ("NoiseMonitor", CHOICE, "star"),
    }


def drawings(
    looks: Sequence[Look],
    course: Course,
    accuracies: Mapping[str, Accuracy],
    kept: Mapping[str, int],
) -> tuple[Drawing, ...]:
    """Draw what was measured.

    Args:
        looks: Of every run, at every step of the course.
        course: What was run.
        accuracies: Of every way.
        kept: Tensors that every way keeps.
    """
    made = (
        (
            "along_training",
            "The noise scale along training",
            "The line is the exact value, shaded from the smallest to the largest of the runs. "
            "Marks are the median of the answers that a way gave, bars their range; a way without "
            "a mark gave none. Marks stand a little apart so that they can be seen.",
            _along_training(looks, course),
        ),
        (
            "memory",
            "Error against memory",
            "Tensors of the size of all parameters that a way keeps, beside those of training. "
            "A way at the top is off by that factor or more, or has no answer for half the points.",
            _against_memory(course, accuracies, kept),
        ),
        (
            "stored",
            "How many gradients way (b) needs",
            "The squared mean of few gradients is mostly noise, so that the plain variance gives "
            "too small a noise scale. Taking that noise off mends the bias.",
            _against_stored(course, accuracies),
        ),
    )
    return tuple(
        Drawing(name=name, title=title, caption=text, figure=figure.to_plotly_json())
        for name, title, text, figure in made
    )


def _along_training(looks: Sequence[Look], course: Course) -> go.Figure:
    first = next(step for step in course.steps if step > 0)
    places = {step: float(step) if step else first / 3 for step in course.steps}
    exact = {
        step: [k.exact.noise_scale or 0.0 for k in looks if k.step == step] for step in course.steps
    }
    figure = canvas(height=520)
    xs = list(places.values())
    figure.add_trace(_band(xs, list(exact.values())))
    figure.add_trace(
        go.Scatter(
            x=xs,
            y=[median(values) for values in exact.values()],
            mode="lines",
            name="exact",
            line={"color": MEASURED, "width": 2.5},
        )
    )
    answers = [value for values in exact.values() for value in values]
    for index, (name, style) in enumerate(_styles(course).items()):
        # Side by side, within a tenth of a decade.
        shift = 10 ** (0.03 * (index - 4))
        trace, values = _answers(looks, course, name, style, places, shift)
        answers += values
        figure.add_trace(trace)
    low, high = log_range(xs, margin=0.06)
    figure.update_layout(
        showlegend=True,
        xaxis=axis(
            "training step",
            type="log",
            range=[low, high],
            tickmode="array",
            tickvals=xs,
            ticktext=["start" if step == 0 else format_count(step) for step in course.steps],
        ),
        yaxis=log_axis("noise scale (examples)", answers, format_count),
    )
    return figure


def _band(xs: Sequence[float], values: Sequence[Sequence[float]]) -> go.Scatter:
    return go.Scatter(
        x=[*xs, *reversed(xs)],
        y=[*map(max, values), *reversed([min(v) for v in values])],
        fill="toself",
        mode="none",
        fillcolor="rgba(59,120,231,0.18)",
        hoverinfo="skip",
        showlegend=False,
    )


def _answers(
    looks: Sequence[Look],
    course: Course,
    name: str,
    style: _Style,
    places: Mapping[int, float],
    shift: float,
) -> tuple[go.Scatter, list[float]]:
    label, color, symbol = style
    xs, middles, lows, highs = [], [], [], []
    for step in course.steps:
        found = [k.estimates[name] for k in looks if k.step == step]
        known = [e.noise_scale for e in found if e is not None and e.noise_scale is not None]
        if known:
            xs.append(places[step] * shift)
            middles.append(median(known))
            lows.append(min(known))
            highs.append(max(known))
    trace = go.Scatter(
        x=xs,
        y=middles,
        mode="markers",
        name=label,
        marker=marker(color, symbol, 9),
        error_y=error_bar(middles, lows, highs, color=color),
    )
    return trace, [*lows, *highs]


def _against_memory(
    course: Course, accuracies: Mapping[str, Accuracy], kept: Mapping[str, int]
) -> go.Figure:
    figure = canvas(height=420)
    nothing = 0.3  # where "none" stands on a log axis
    factors: list[float] = []
    for name, (label, color, symbol) in _styles(course).items():
        counts = course.stored if name == stored_name(course.stored[-1]) else ()
        names = [stored_name(count) for count in counts] or [name]
        ys = [_factor(accuracies[one]) for one in names]
        factors += ys
        figure.add_trace(
            go.Scatter(
                x=[kept[one] or nothing for one in names],
                y=ys,
                mode="lines+markers" if counts else "markers",
                name="(b) stored gradients" if counts else label,
                line={"color": color, "width": 1.5},
                marker=marker(color, symbol, 10),
            )
        )
    ticks = [1, 2, 5, 10, 20, 50, 100, 200, 500]
    shown = [tick for tick in ticks if tick <= 1.5 * course.stored[-1]]
    low, high = log_range([nothing, float(course.stored[-1])], margin=0.06)
    figure.update_layout(
        showlegend=True,
        xaxis=axis(
            "tensors kept, of the size of all parameters",
            type="log",
            range=[low, high],
            tickmode="array",
            tickvals=[nothing, *shown],
            ticktext=["none", *map(str, shown)],
        ),
        yaxis=log_axis(_FACTOR, [1.0, *factors], format_number),
    )
    _line_of_good(figure)
    return figure


def _against_stored(course: Course, accuracies: Mapping[str, Accuracy]) -> go.Figure:
    figure = canvas(height=400)
    curves = (
        ("variance over squared mean", stored_name, SECOND, "square"),
        ("the mean's own noise taken off", corrected_name, CHOICE, "circle"),
    )
    factors: list[float] = []
    for label, named, color, symbol in curves:
        ys = [_factor(accuracies[named(count)]) for count in course.stored]
        factors += ys
        figure.add_trace(
            go.Scatter(
                x=list(course.stored),
                y=ys,
                mode="lines+markers",
                name=label,
                line={"color": color, "width": 2},
                marker=marker(color, symbol),
            )
        )
    counts = [float(count) for count in course.stored]
    low, high = log_range(counts, margin=0.06)
    figure.update_layout(
        showlegend=True,
        xaxis=axis(
            f"gradients stored, of {course.batch_size} examples each",
            type="log",
            range=[low, high],
            tickmode="array",
            tickvals=counts,
            ticktext=list(map(str, course.stored)),
        ),
        yaxis=log_axis(_FACTOR, [1.0, *factors], format_number),
    )
    _line_of_good(figure)
    return figure


def _factor(found: Accuracy) -> float:
    return min(_WORST, found.typical_factor or _WORST)


def _line_of_good(figure: go.Figure) -> None:
    figure.add_hline(y=GOOD, line={"color": FAINT, "width": 1, "dash": "dot"})
