"""Draw a run whose batch grows beside one whose rate decays, for the documentation.

python -m benchmarks.increase_batch_picture   # from the committed results; needs a Chromium
"""

import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from rightbatch._format import format_count, format_learning_rate
from rightbatch.report.canvas import CHOICE, FAINT, TODAY, axis, canvas, log_range, marker

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "images" / "grow-the-batch.png"
WIDTH, HEIGHT = 1000, 640  # pixels
FONT = "DejaVu Sans, sans-serif"  # what every Linux has: no browser is told a system's own
# Colour, dash and symbol: none of them stands alone.
LOOKS = {
    "constant": ("neither", FAINT, "dot", "circle"),
    "decay": ("decay the rate", TODAY, "dash", "square"),
    "grow": ("grow the batch", CHOICE, "solid", "diamond"),
}
COLUMNS, ROWS = ((0.0, 0.44), (0.56, 1.0)), ((0.58, 1.0), (0.0, 0.42))


def draw(result: dict[str, Any], picture: Path = PICTURE) -> None:
    """Photograph the figure of the last task in a browser; say so where there is none."""
    browser = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    if shutil.which(browser) is None:
        print(f"no picture: no Chromium at {browser}, name one in $CHROMIUM", file=sys.stderr)
        return
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        page_file = Path(folder) / "figure.html"
        figure_of(result["tasks"][-1]).write_html(page_file, config={"displayModeBar": False})
        chromium = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(page_file.as_uri())
        page.wait_for_selector(".main-svg")
        page.locator(".plot-container").first.screenshot(path=picture)
        chromium.close()


def figure_of(task: dict[str, Any]) -> go.Figure:
    """Draw batch size and rate over examples, and test accuracy over examples and updates."""
    figure = canvas(height=HEIGHT)
    for way, (name, color, dash, symbol) in LOOKS.items():
        curves = [run["curve"] for run in task["runs"][way]]
        line = {"color": color, "dash": dash, "width": 2.2}
        examples = _means(curves, "examples")
        accuracy = [100 * value for value in _means(curves, "accuracy")]
        low, high = (
            [
                100 * edge(point["accuracy"] for point in points)
                for points in zip(*curves, strict=True)
            ]
            for edge in (min, max)
        )
        for panel, key in (("", "batch_size"), ("3", "learning_rate")):
            # A point tells of the stretch before it.
            figure.add_scatter(
                x=[0, *examples], y=[curves[0][0][key], *_means(curves, key)],
                mode="lines", line={**line, "shape": "vh"}, showlegend=False,
                xaxis=f"x{panel}", yaxis=f"y{panel}",
            )  # fmt: skip
        for panel, over in (("2", examples), ("4", _means(curves, "updates"))):
            axes = {"xaxis": f"x{panel}", "yaxis": f"y{panel}"}
            figure.add_scatter(
                x=[*over, *over[::-1]], y=[*low, *high[::-1]], fill="toself", mode="none",
                fillcolor=color, opacity=0.15, showlegend=False, **axes,
            )  # fmt: skip
            figure.add_scatter(
                x=over, y=accuracy, mode="lines+markers", line=line, name=name,
                marker=marker(color, symbol, 7), showlegend=panel == "2", **axes,
            )  # fmt: skip
    _lay_out(figure, task)
    return figure


def _means(curves: Sequence[Sequence[dict[str, float]]], key: str) -> list[float]:
    return [
        statistics.fmean(point[key] for point in points) for points in zip(*curves, strict=True)
    ]


def _lay_out(figure: go.Figure, task: dict[str, Any]) -> None:
    curves = [run["curve"] for runs in task["runs"].values() for run in runs]
    points = [point for curve in curves for point in curve]
    titles = [
        ("examples", "batch size (examples)"),
        ("examples", "test accuracy (%)"),
        ("examples", "learning rate"),
        ("updates", "test accuracy (%)"),
    ]
    settings: dict[str, Any] = {}
    for index, (across, up) in enumerate(titles):
        panel = "" if index == 0 else str(index + 1)
        settings[f"xaxis{panel}"] = axis(
            across if across == "updates" else "examples seen",
            domain=COLUMNS[index % 2],
            anchor=f"y{panel}",
            range=[0, 1.02 * max(point[across] for point in points)],
            tickformat=",",
        )
        settings[f"yaxis{panel}"] = axis(up, domain=ROWS[index // 2], anchor=f"x{panel}")
    for panel, key, words in (
        ("", "batch_size", format_count),
        ("3", "learning_rate", format_learning_rate),
    ):
        ticks = sorted({point[key] for point in points})
        settings[f"yaxis{panel}"] |= {
            "type": "log", "range": log_range(ticks, margin=0.1), "tickmode": "array",
            "tickvals": ticks, "ticktext": [words(tick) for tick in ticks],
        }  # fmt: skip
    figure.update_layout(
        **settings,
        width=WIDTH,
        paper_bgcolor="white",
        plot_bgcolor="white",
        showlegend=True,
        font_family=FONT,
    )


if __name__ == "__main__":
    draw(json.loads((ROOT / "benchmarks" / "results" / "increase_batch.json").read_text()))
