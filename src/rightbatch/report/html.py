"""The results as one page that needs nothing but itself: no network, no server."""

from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from rightbatch import _codec
from rightbatch._format import (
    format_count,
    format_interval,
    format_learning_rate,
    format_ratio,
    format_seconds,
)
from rightbatch.report.figures import figures
from rightbatch.report.front_tables import plan_tables
from rightbatch.report.settings_table import settings_tables
from rightbatch.report.snippet import next_steps
from rightbatch.report.tables import Table, candidates_table, tables
from rightbatch.report.words import (
    INSTRUMENTS,
    Finding,
    all_warnings,
    details,
    findings,
    headline,
    measured,
    printable,
    subject,
    time_spent,
    unbroken,
)
from rightbatch.results import Plan, Results, Status

# One plain sentence for each figure: what is drawn, and how to read it.
_CAPTIONS = {
    "plan": (
        "Time against batch size",
        "Time to reach the same loss, over the best; any shaded sizes are within 5 % of "
        "it, any crosses do not fit in memory.",
    ),
    "trade_off": (
        "Why there is a best",
        "A larger batch needs fewer steps but each takes longer: time is the product of the two.",
    ),
    "front": (
        "Time against cost",
        "Each labelled point is a number of devices: no other way is both faster and cheaper. "
        "Faint points are beaten by one of them.",
    ),
    "memory": (
        "Peak memory",
        "The most memory a full training step held at each size; hollow points were predicted.",
    ),
    "throughput": (
        "Throughput",
        "Examples per second rise with the batch until the fixed cost of a step is spread thin.",
    ),
    "step_time": (
        "Where a step's time goes",
        "What is left of the fixed cost at each batch size, and what loading adds to computing.",
    ),
    "noise": (
        "Gradient noise along a run",
        "The noise scale is the batch size at which the gradient is half noise; it often grows as "
        "the loss falls. An arrow means that the data set no upper end.",
    ),
    "range_test": (
        "Learning rate range test",
        "The loss while the learning rate rises step by step: it falls, then rises at the edge. "
        "What lies above the frame diverges.",
    ),
    "race": (
        "Race of learning rates",
        "The loss each rate reached at the chosen batch size; hollow points were stopped early, "
        "the shaded rates cannot be told from the winner.",
    ),
}
_SECTIONS = {
    "memory": ("Memory", ("memory",)),
    "throughput": ("Throughput", ("throughput", "step_time")),
    "noise": ("Gradient noise", ("noise",)),
    "learning_rate": ("Learning rate", ("range_test", "race")),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One number of the recommendation."""

    label: str
    value: str
    remark: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A figure's place on the page."""

    name: str
    title: str
    caption: str
    height: int  # pixels, kept free before the figure is drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """What one instrument contributed."""

    title: str
    anchor: str
    findings: tuple[Finding, ...]
    drawings: tuple[Drawing, ...]
    tables: tuple[Table, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How long one part took."""

    label: str
    words: str
    percent: float


def render_html(results: Results) -> str:
    """Write results as one self-contained page.

    The figures are drawn by a copy of plotly.js inside the page, so that it opens anywhere and
    asks the network for nothing; all words and tables are there without JavaScript, too. The
    results file is embedded, so that the page is also a backup of it.

    Args:
        results: Any results; parts that were not measured are left out.

    Returns:
        A complete HTML document, about 5 MB, nearly all of it plotly.js.

    Raises:
        ResultsError: If a number is NaN or infinite.

    Example:
        >>> from rightbatch.results import Results, TaskFacts
        >>> task = TaskFacts(name="a < b", parameters=10, examples=64, batch_size=8,
        ...                  learning_rate=0.1, optimizer="SGD", hyperparameters={})
        >>> page = render_html(Results(task=task, environment={}))
        >>> "<title>a &lt; b: rightbatch</title>" in page
        True
    """
    drawn = figures(results)
    plots = {name: figure.to_plotly_json() for name, figure in drawn.items()}
    drawings = {
        name: Drawing(name=name, title=title, caption=text, height=plots[name]["layout"]["height"])
        for name, (title, text) in _CAPTIONS.items()
        if name in drawn
    }
    plan = results.plan if _recommends(results.plan) else None
    environment = Environment(
        loader=PackageLoader("rightbatch", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = unbroken
    return environment.get_template("page.html.j2").render(
        name=printable(results.task.name),
        subject=subject(results),
        headline=headline(results),
        details=details(plan) if plan else (),
        tiles=_tiles(results, plan) if plan else (),
        candidates=candidates_table(plan) if plan and plan.candidates else None,
        plan_tables=(*plan_tables(plan), *settings_tables(plan)) if plan else (),
        reasons=results.plan.reasons if results.plan else (),
        warnings=all_warnings(results),
        code="\n".join(next_steps(results)),
        sections=_sections(results, drawings),
        drawings=drawings,
        shares=_shares(results),
        time_spent=time_spent(results),
        environment=results.environment,
        results_json=_embed(_codec.to_json(results)),
        figures_json=_embed(plots),
        plotly_js=Markup(get_plotlyjs()) if plots else "",
    )


def _recommends(plan: Plan | None) -> bool:
    return plan is not None and plan.status is not Status.NOTHING_FITS


def _embed(plain: dict[str, Any]) -> Markup:
    """JSON that can stand in a script element: no character in it can end the element."""
    return htmlsafe_json_dumps(plain, allow_nan=False)


def _tiles(results: Results, plan: Plan) -> tuple[Tile, ...]:
    task = results.task
    today = plan.current.batch_size if plan.current else task.batch_size
    tiles = [
        Tile(
            label="Batch size",
            value=format_count(plan.batch_size),
            remark=f"today {format_count(today)}" if today else "examples per step",
        )
    ]
    if plan.learning_rate is not None:
        rate = task.learning_rate
        remark = f"today {format_learning_rate(rate)}" if rate else task.optimizer
        value = format_learning_rate(plan.learning_rate)
        tiles.append(Tile(label="Learning rate", value=value, remark=remark))
    if plan.speedup is not None:
        ends = format_interval(None, plan.speedup_low, plan.speedup_high, number=format_ratio)
        remark = "over today" if ends == "unknown" else f"{ends}, over today"
        tiles.append(Tile(label="Speed", value=format_ratio(plan.speedup), remark=remark))
    if plan.devices > 1 or plan.accumulation_steps > 1:
        value = format_count(plan.micro_batch_size)
        remark = f"x {plan.accumulation_steps} steps x {plan.devices} devices"
        tiles.append(Tile(label="Micro-batch size", value=value, remark=remark))
    return tuple(tiles)


def _sections(results: Results, drawings: dict[str, Drawing]) -> tuple[Section, ...]:
    found = findings(results)
    return tuple(
        Section(
            title=_SECTIONS[name][0],
            anchor=name,
            findings=tuple(f for f in found if f.part in INSTRUMENTS[name]),
            drawings=tuple(drawings[d] for d in _SECTIONS[name][1] if d in drawings),
            tables=tables(results, name),
        )
        for name in measured(results)
    )


def _shares(results: Results) -> tuple[Share, ...]:
    spent = {name: seconds for name, seconds in results.seconds.items() if seconds > 0}
    total = sum(spent.values())
    return tuple(
        Share(
            label=name.replace("_", " "),
            words=format_seconds(seconds),
            percent=round(100 * seconds / total, 1),
        )
        for name, seconds in sorted(spent.items(), key=lambda item: -item[1])
    )
