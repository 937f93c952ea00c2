"""Show a study: as text, as Markdown, as a page. Pure: a study in, text out."""

import io
import textwrap

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from rich import box
from rich.console import Console
from rich.table import Table

from rightbatch._format import format_seconds
from rightbatch.studies.study import Study, StudyTable

_WIDTH = 100  # columns of text, whatever the terminal


def render_text(study: Study, *, width: int = _WIDTH) -> str:
    """Write verdicts and the main table as plain text.

    Args:
        study: A finished one.
        width: Of a line, in characters.
    """
    lines = [study.title, "", *textwrap.wrap(study.summary, width), ""]
    for claim in study.claims:
        lines.append(f"{claim.key}  {str(claim.verdict).upper()}")
        for text in (claim.text, claim.evidence):
            lines += textwrap.wrap(text, width, initial_indent="    ", subsequent_indent="    ")
        lines.append("")
    for table in study.tables[:2]:
        lines += [_text_table(table, width), *textwrap.wrap(table.note, width), ""]
    lines.append(f"Took {format_seconds(study.seconds)}.")
    return "\n".join(lines) + "\n"


def _text_table(table: StudyTable, width: int) -> str:
    shown = Table(
        title=table.title, title_justify="left", title_style="", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for index, name in enumerate(table.header):
        shown.add_column(
            name, justify="right" if index else "left", overflow="fold", no_wrap=not index
        )
    for row in table.rows:
        shown.add_row(*row)
    written = io.StringIO()
    Console(file=written, width=width, color_system=None, markup=False).print(shown)
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines())


def render_markdown(study: Study) -> str:
    """Write all of a study but its figures as Markdown."""
    lines = [f"# {study.title}", "", study.summary, ""]
    lines += ["| claim | verdict | what was measured |", "|---|---|---|"]
    lines += [f"| {c.key}: {c.text} | **{c.verdict}** | {c.evidence} |" for c in study.claims]
    lines += ["", "Rules, written before the run:", ""]
    lines += [f"- {claim.key}: {claim.rule}" for claim in study.claims]
    for table in study.tables:
        lines += ["", f"## {table.title}", ""]
        lines += ["| " + " | ".join(table.header) + " |", "|---" * len(table.header) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in table.rows]
        lines += ["", table.note]
    conditions = ", ".join(f"{key} {value}" for key, value in study.environment.items())
    took = f"Took {format_seconds(study.seconds)}, seed {study.seed}."
    return "\n".join([*lines, "", f"{took} Machine: {conditions}."]) + "\n"


def render_page(study: Study) -> str:
    """Write a study as one self-contained page, in the look of the report.

    Returns:
        A complete HTML document, nearly all of it plotly.js; it asks the network for nothing.
    """
    environment = Environment(
        loader=ChoiceLoader(
            [PackageLoader("rightbatch", "studies"), PackageLoader("rightbatch", "report")]
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    figures = {drawing.name: drawing.figure for drawing in study.drawings}
    return environment.get_template("study.html.j2").render(
        study=study,
        took=format_seconds(study.seconds),
        results_json=htmlsafe_json_dumps(study.to_json(), allow_nan=False),
        figures_json=htmlsafe_json_dumps(figures, allow_nan=False),
        plotly_js=Markup(get_plotlyjs()) if figures else "",
    )
