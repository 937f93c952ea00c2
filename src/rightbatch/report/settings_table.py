"""The optimizer's settings, today and as the plan has them."""

from rightbatch._format import format_learning_rate, format_setting
from rightbatch.report.table import Row, Table
from rightbatch.results import Change, Plan, Validity

_DOUBTS = {
    Validity.HOLDS: "",
    Validity.OUTSIDE: " (outside validity)",
    Validity.UNCHECKED: " (not checked)",
}


def settings_tables(plan: Plan) -> tuple[Table, ...]:
    """Tabulate every setting that the batch size touches.

    Args:
        plan: A plan.

    Returns:
        A table with a row for each setting; none where today's batch size is not known.
    """
    rows = tuple(_row(change) for change in plan.changes)
    header = ("", "today", "then", "")
    return (Table(title="The optimizer's settings", header=header, rows=rows),) if rows else ()


def settings_sentence(plan: Plan) -> tuple[str, ...]:
    """Say in one sentence what the other settings become, beside the learning rate.

    Args:
        plan: A plan.

    Returns:
        A sentence, or none where there are no others.
    """
    others = [change for change in plan.changes if change.parameter != "lr"]
    said = [_words(change) for change in others if change.before != change.after]
    kept = [c for c in others if c.before == c.after]
    if kept:
        names = ", ".join(f"{change.parameter} {format_setting(change.after)}" for change in kept)
        said.append(f"{names} as today")
    return (f"Other settings: {'; '.join(said)}.",) if said else ()


def _words(change: Change) -> str:
    before, after = format_setting(change.before), format_setting(change.after)
    return f"{change.parameter} {before} -> {after}{_DOUBTS[change.validity]}"


def _row(change: Change) -> Row:
    is_rate = change.parameter == "lr"
    shown = format_learning_rate if is_rate else format_setting
    name = "learning rate" if is_rate else change.parameter
    why = f"{change.why}{_DOUBTS[change.validity]}"
    return Row(cells=(name, shown(change.before), shown(change.after), why))
