"""``python -m benchmarks NAME [TASK]``: run one benchmark, print its table, keep its results."""

import sys
from typing import Annotated

import typer

from benchmarks import decision as decisions
from benchmarks import noise as noises

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


def _say(line: str) -> None:
    typer.echo(line, err=True)


@app.command()
def decision(task: Annotated[str, typer.Argument(help="digits, mnist or bikes")]) -> None:
    """Time to target at the plan's setting, against a grid of tuned settings."""
    if task not in decisions.GRIDS:
        raise typer.BadParameter(f"must be one of {', '.join(decisions.GRIDS)}, got {task!r}")
    result = decisions.decision(task, _say)
    decisions.write(result)
    sys.stdout.write(decisions.as_markdown(result))


@app.command()
def noise() -> None:
    """The noise probe against the exact value, and its memory."""
    result = noises.noise()
    noises.write(result)
    sys.stdout.write(noises.as_markdown(result))


if __name__ == "__main__":
    app()
