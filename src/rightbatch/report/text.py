"""The results as one screen of text."""

import io
import textwrap
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table as RichTable

from rightbatch.report.front_tables import plan_tables
from rightbatch.report.settings_table import settings_sentence
from rightbatch.report.snippet import next_steps
from rightbatch.report.tables import Table, candidates_table, tables
from rightbatch.report.words import (
    NO_BREAK,
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
from rightbatch.results import Results, Status

_INDENT = "  "
_MOST_CANDIDATES = 7
_WIDEST_TABLE = 160  # columns; a cell that is cut off would tell less than a wide line
_MARKS = {"choice": ">", "current": "*"}


def render_text(results: Results, *, width: int = 92) -> str:
    """Write results as one screen of plain text, without colours.

    What to train with comes first, then one line for each thing that was measured, then the
    reasons. Results of a single instrument show that instrument's table instead of a plan.

    Args:
        results: Any results; parts that were not measured are left out.
        width: Columns, at least 60. Code and tables may be wider where they must.

    Returns:
        Lines of text with a final newline.

    Example:
        >>> from rightbatch.results import Results, TaskFacts
        >>> task = TaskFacts(name="toy", parameters=10, examples=64, batch_size=8,
        ...                  learning_rate=0.1, optimizer="SGD", hyperparameters={})
        >>> print(render_text(Results(task=task, environment={})), end="")
        toy: 10 parameters, 64 examples, SGD
        <BLANKLINE>
          Nothing was measured.
    """
    title = f"{results.task.name}: {subject(results)}"
    blocks = [
        _wrap(title, width, "", ""),
        _headline(results, width),
        _measured(results, width),
        *_tables(results, width),
        _list("Why", results.plan.reasons if results.plan else (), width),
        _list("Warnings", all_warnings(results), width),
        _code(results),
        _wrapped(time_spent(results), width, indent=""),
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _headline(results: Results, width: int) -> list[str]:
    sentence, plan = headline(results), results.plan
    sentences = [sentence] if sentence else []
    if plan is not None and plan.status is not Status.NOTHING_FITS:
        sentences = [" ".join([*sentences, *settings_sentence(plan)]), *details(plan)]
    return [line for sentence in sentences for line in _wrapped(sentence, width)]


def _measured(results: Results, width: int) -> list[str]:
    found = findings(results)
    if not found:
        return []
    lines = ["Measured"]
    column = max(len(finding.label) for finding in found) + 2
    said = set(details(results.plan)) if results.plan else set()
    for finding in found:
        first = f"{_INDENT}{finding.label:<{column}}"
        lines += _wrap(_with_doubt(finding, said), width, first, " " * len(first))
    return lines


def _with_doubt(finding: Finding, said: set[str]) -> str:
    """The finding and its doubt; a doubt that was said before only by its name."""
    if finding.doubt is None:
        return f"{finding.text}."
    if finding.doubt in said and finding.status is Status.AT_LEAST:
        return f"{finding.text}."  # its own words say so
    if finding.doubt in said:
        return f"{finding.text} ({finding.status.value.replace('_', ' ')})."
    said.add(finding.doubt)
    return f"{finding.text}. {finding.doubt}"


def _tables(results: Results, width: int) -> list[list[str]]:
    if results.plan is not None and results.plan.candidates:
        made = (
            candidates_table(results.plan, limit=_MOST_CANDIDATES),
            *plan_tables(results.plan),
        )
        return [_table(table, width) for table in made]
    parts = measured(results)
    return [_table(table, width) for table in tables(results, parts[0])] if len(parts) == 1 else []


def _table(table: Table, width: int) -> list[str]:
    drawn = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    drawn.add_column("", justify="left", no_wrap=True)
    for name in table.header:
        drawn.add_column(name, justify="right" if name else "left", no_wrap=True)
    for row in table.rows:
        drawn.add_row(_MARKS.get(row.mark, ""), *row.cells)
    stream = io.StringIO()
    # Every choice that rich would make from its surroundings is made here: the same text always.
    console = Console(
        file=stream, width=max(width, _WIDEST_TABLE), color_system=None, force_jupyter=False,
        legacy_windows=False, highlight=False, markup=False, emoji=False,
    )  # fmt: skip
    console.print(drawn)
    body = [f"{_INDENT}{line}".rstrip() for line in stream.getvalue().splitlines()]
    return [table.title, *body, *_wrapped(table.note, width)]


def _list(title: str, sentences: Iterable[str], width: int) -> list[str]:
    lines = [line for text in sentences for line in _wrap(text, width, f"{_INDENT}- ", "    ")]
    return [title, *lines] if lines else []


def _code(results: Results) -> list[str]:
    lines = next_steps(results)
    return ["In code", *(f"{_INDENT}{printable(line)}" for line in lines)] if lines else []


def _wrapped(sentence: str | None, width: int, *, indent: str = _INDENT) -> list[str]:
    return _wrap(sentence, width, indent, indent) if sentence else []


def _wrap(text: str, width: int, first: str, rest: str) -> list[str]:
    """Break into lines, but never between a number and its unit."""
    whole = unbroken(printable(text))
    lines = textwrap.wrap(whole, width, initial_indent=first, subsequent_indent=rest)
    return [line.replace(NO_BREAK, " ") for line in lines]
