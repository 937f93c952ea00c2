"""What all figures share: colours, axes, marks. Each colour means one thing everywhere.

Colours keep a contrast of 3:1 on white and on near-black, and never stand alone: the choice is
a diamond, the current setting a square, the impossible a cross. Text takes the page's ink.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import plotly.graph_objects as go

from rightbatch._format import format_count, round_significant

MEASURED = "#3b78e7"  # blue: what was measured
SECOND = "#a05fd6"  # violet, dashed: the other quantity of a figure
CHOICE = "#0d9670"  # green: what is recommended
TODAY = "#d2691e"  # orange: what the user does today
LIMIT = "#d64550"  # red: where it ends
FAINT = "#868e96"  # grey: what cannot be had
BATCH_SIZE = "batch size (examples)"
INK = "#1f2430"  # text; the page replaces it in the dark
_GRID = "rgba(134,142,150,0.22)"
_HEIGHT = 380  # pixels
_ROW = 16  # pixels
_MOST_TICKS = 16  # a wide screen has room for as many batch sizes
_STEPS = (1.0, 2.0, 5.0)


def canvas(*, height: int = _HEIGHT) -> go.Figure:
    """Make an empty figure on a transparent ground; the caller describes its axes."""
    layout = go.Layout(
        template=go.layout.Template(),  # not plotly's: it is long, and differs between versions
        height=height,
        font={
            "family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
            "size": 13,
            "color": INK,
        },
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 64, "r": 18, "t": 14, "b": 52},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": FAINT, "activecolor": MEASURED},
        hovermode="closest",
        dragmode=False,
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
        showlegend=False,
    )
    return go.Figure(layout=layout)


def axis(title: str, **settings: object) -> dict[str, object]:
    """Describe a quiet axis with a title that names its unit."""
    return {
        "title": {"text": title, "standoff": 10, "font": {"size": 13}},
        "tickfont": {"size": 12},
        "gridcolor": _GRID,
        "linecolor": FAINT,
        "zeroline": False,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": _GRID,
        "automargin": True,
        **settings,
    }


def batch_axis(title: str, sizes: Iterable[int]) -> dict[str, object]:
    """Describe a log2 axis of batch sizes with a tick at each size that was tried."""
    values = sorted(set(sizes))
    ticks = _spaced(values)
    return axis(
        title,
        type="log",
        range=log_range(values, margin=0.06),
        tickmode="array",
        tickvals=ticks,
        ticktext=[format_count(size) for size in ticks],
    )


def _spaced(sizes: Sequence[int]) -> list[int]:
    """Leave out sizes whose labels would lie on top of each other; powers of two come first."""
    gap = math.log2(sizes[-1] / sizes[0]) / _MOST_TICKS
    kept: list[int] = []
    for size in sorted(sizes, key=lambda size: (size.bit_count() > 1, size)):
        if all(abs(math.log2(size / other)) >= gap for other in kept):
            kept.append(size)
    return sorted(kept)


def log_axis(
    title: str, values: Iterable[float], words: Callable[[float], str]
) -> dict[str, object]:
    """Describe a log axis with ticks at round numbers, written by `words`."""
    known = [value for value in values if value > 0]
    low, high = log_range(known, margin=0.08)
    ticks = round_ticks(10**low, 10**high)
    return axis(
        title,
        type="log",
        range=[low, high],
        tickmode="array",
        tickvals=ticks,
        ticktext=[words(tick) for tick in ticks],
    )


def log_range(values: Sequence[float], *, margin: float) -> list[float]:
    """Ends of a log axis in powers of ten, with a share of its length to spare on both sides."""
    low, high = math.log10(min(values)), math.log10(max(values))
    spare = max(margin * (high - low), 0.05)
    return [low - spare, high + spare]


def round_ticks(low: float, high: float) -> list[float]:
    """Choose 1-2-5 numbers between two positive ends; only powers of ten where that is enough.

    Example:
        >>> round_ticks(0.8, 12.0)
        [1.0, 2.0, 5.0, 10.0]
        >>> round_ticks(0.5, 3e5)
        [1.0, 10.0, 100.0, 1000.0, 10000.0, 100000.0]
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    decades = math.log10(high / low)
    steps = _STEPS if decades < 3 else (1.0,)
    if decades < 0.6:
        steps = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
    every = max(1, math.ceil(len(powers) / 8)) if decades >= 3 else 1
    ticks = [float(f"{step}e{power}") for power in powers[::every] for step in steps]
    inside = [tick for tick in ticks if low <= tick <= high]
    if len(inside) >= 2:
        return inside
    return [round_significant(low * (high / low) ** share) for share in (0.1, 0.5, 0.9)]


def axis_range(figure: go.Figure, name: str) -> tuple[float, float]:
    """Read back the ends of a log axis, in powers of ten."""
    layout: Any = figure.layout
    low, high = layout[name]["range"]
    return low, high


def mark(figure: go.Figure, x: float, words: str, *, color: str, dash: str = "dot") -> None:
    """Draw a vertical line on a log axis, its words at the foot, where rising curves leave room."""
    _vertical_line(figure, x, color, dash)
    figure.add_annotation(
        x=math.log10(x), y=0, yref="paper", yanchor="bottom", text=words, showarrow=False,
        xanchor="left", xshift=4, font={"size": 12},
    )  # fmt: skip


def marks_above(figure: go.Figure, marks: Sequence[tuple[float, str, str, str]]) -> None:
    """Draw vertical lines on a log axis: (x, words, colour, dash). The words stand above the frame.

    Each has a row of its own, so that they cannot collide at any width.
    """
    low, high = axis_range(figure, "xaxis")
    for row, (x, words, color, dash) in enumerate(sorted(marks, reverse=True)):
        _vertical_line(figure, x, color, dash)
        share = (math.log10(x) - low) / (high - low)
        figure.add_annotation(
            x=math.log10(x), y=1, yref="paper", yanchor="bottom", yshift=_ROW * row,
            text=words, showarrow=False, font={"size": 12},
            xanchor="left" if share < 0.2 else "right" if share > 0.8 else "center",
        )  # fmt: skip
    figure.update_layout(margin_t=_ROW * len(marks) + 8)


def _vertical_line(figure: go.Figure, x: float, color: str, dash: str) -> None:
    figure.add_shape(
        type="line", x0=x, x1=x, y0=0, y1=1, yref="paper", layer="below",
        line={"color": color, "width": 1.6, "dash": dash},
    )  # fmt: skip


def stretch(figure: go.Figure, x0: float, x1: float, *, color: str) -> None:
    """Shade a stretch of the x axis."""
    figure.add_shape(
        type="rect", x0=x0, x1=x1, y0=0, y1=1, yref="paper",
        fillcolor=color, opacity=0.10, line={"width": 0}, layer="below",
    )  # fmt: skip


def marker(
    color: str, symbol: str = "circle", size: float = 8, *, hollow: bool = False
) -> dict[str, object]:
    """Describe a marker; a hollow one is less than fully known."""
    outline = {"color": color, "width": 1.8 if hollow or symbol == "x-thin" else 0}
    name = f"{symbol}-open" if hollow else symbol
    return {"color": color, "symbol": name, "size": size, "opacity": 1, "line": outline}


def error_bar(
    values: Sequence[float], lows: Sequence[float], highs: Sequence[float], *, color: str
) -> dict[str, object]:
    """Describe asymmetric intervals around values."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - value for value, high in zip(values, highs, strict=True)],
        "arrayminus": [value - low for value, low in zip(values, lows, strict=True)],
        "color": color,
        "thickness": 1.3,
        "width": 3,
    }
