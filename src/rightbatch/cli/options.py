"""The options that the commands share, each with its check and its help."""

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Objective(StrEnum):
    """What a plan minimises."""

    TIME = "time"
    COST = "cost"
    ENERGY = "energy"


def _at_least_one(value: int) -> int:
    if value < 1:
        raise typer.BadParameter(f"must be at least 1, got {value}. Count the devices you have.")
    return value


def _not_negative(value: int) -> int:
    if value < 0:
        raise typer.BadParameter(f"must not be negative, got {value}. Any whole number will do.")
    return value


def _positive(value: float | None) -> float | None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise typer.BadParameter(
            f"must be positive and finite, got {value:g}. Leave it out for the default."
        )
    return value


TaskName = Annotated[
    str,
    typer.Argument(
        metavar="TASK",
        help="A built-in name (see `rightbatch tasks`), path/to/file.py:function or "
        "package.module:function, the function returning a rightbatch.Task.",
    ),
]
ResultsFile = Annotated[Path, typer.Argument(metavar="RESULTS.json")]
ObjectiveOption = Annotated[Objective, typer.Option(help="What to minimise.")]
Devices = Annotated[
    int, typer.Option(callback=_at_least_one, help="Devices that will share a batch.")
]
Price = Annotated[
    float | None, typer.Option(callback=_positive, help="Price of one device-hour, any currency.")
]
Budget = Annotated[
    float, typer.Option("--time-budget", callback=_positive, help="Seconds of measuring.")
]
Seed = Annotated[int, typer.Option(callback=_not_negative, help="Of every random draw.")]
Output = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Write results.json and report.html here.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the results file, nothing else.")]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show where an error came from.")]
BatchSize = Annotated[
    int | None, typer.Option(callback=lambda v: v and _at_least_one(v), help="Default: today's.")
]
