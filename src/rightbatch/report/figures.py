"""All figures of the report by name, in reading order."""

import plotly.graph_objects as go

from rightbatch.report.hardware_figures import memory_figure, step_time_figure, throughput_figure
from rightbatch.report.learning_figures import noise_figure, race_figure, range_test_figure
from rightbatch.report.plan_figures import front_figure, plan_figure, trade_off_figure
from rightbatch.results import Results

FIGURES = {
    "plan": plan_figure,
    "trade_off": trade_off_figure,
    "front": front_figure,
    "memory": memory_figure,
    "throughput": throughput_figure,
    "step_time": step_time_figure,
    "noise": noise_figure,
    "range_test": range_test_figure,
    "race": race_figure,
}


def figures(results: Results) -> dict[str, go.Figure]:
    """Draw everything that was measured.

    Args:
        results: Any results.

    Returns:
        Figures by name: "plan", "trade_off", "front", "memory", "throughput", "step_time",
        "noise", "range_test", "race"; a part that was not measured has none.
    """
    drawn = {name: draw(results) for name, draw in FIGURES.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}
