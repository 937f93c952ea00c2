"""``rightbatch study``: put a published claim to the test on real data."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from rightbatch.cli.options import Seed, Traceback
from rightbatch.cli.session import progress_bar, words
from rightbatch.cli.session import session as open_session
from rightbatch.studies import STUDIES
from rightbatch.studies.showing import render_markdown, render_page, render_text
from rightbatch.studies.study import write_text


def study_command(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="One of those that --list shows.")
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="List the studies.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="A trial, in seconds: too little to judge by.")
    ] = False,
    seed: Seed = 0,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Write NAME.html, .json and .md here.")
    ] = Path("studies"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the study's file, nothing else.")
    ] = False,
    traceback: Traceback = False,
) -> None:
    """Put published claims to the test on real data, and show the verdicts."""
    if show_list:
        _list()
        return
    entry = STUDIES.get(name or "")
    if entry is None:
        raise typer.BadParameter(
            f"must be one of {', '.join(STUDIES)}, got {name!r}. `rightbatch study --list` says "
            "what each is about.",
            param_hint="NAME",
        )
    with open_session(output, as_json=as_json, traceback=traceback) as session:
        with progress_bar() as progress:
            study = entry.run(seed=seed, quick=quick, progress=progress)
        page, file = output / f"{study.name}.html", output / f"{study.name}.json"
        study.save(file)
        write_text(page, render_page(study))
        write_text(output / f"{study.name}.md", render_markdown(study))
        session.stdout.write(study.dumps() if as_json else render_text(study))
        session.stdout.flush()
        words.print(f"Wrote {page}, and {file.name} and {study.name}.md beside it.", soft_wrap=True)


def _list() -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("study", "claims", "what it asks"):
        table.add_column(column)
    for name, entry in STUDIES.items():
        table.add_row(name, ", ".join(entry.claims), entry.title)
    Console(highlight=False).print(table)
