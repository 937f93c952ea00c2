"""The options that the commands share, each with its check and its help."""

import math
import re
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


def device_counts(text: str) -> tuple[int, ...]:
    """Read ``4`` or ``1,2,4,8``."""
    counts: list[int] = []
    for part in text.split(","):
        try:
            count = int(part)
        except ValueError as error:
            raise typer.BadParameter(
                f"must be whole numbers with commas, got {text!r}. Write 4 or 1,2,4,8."
            ) from error
        counts.append(_at_least_one(count))
    return tuple(counts)


def _checked_counts(text: str) -> str:
    device_counts(text)
    return text


_UNIT_SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def _duration_seconds(text: str) -> float:
    """Read ``90``, ``90s``, ``30m``, ``1h`` or ``2d`` as seconds."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", text.lower())
    if found is not None and found[2] not in _UNIT_SECONDS:
        raise typer.BadParameter(
            f"must be in s, m, min, h or d, got {text!r}. Write 90s, 30m, 1h or 2d."
        )
    if found is None or float(found[1]) == 0:
        raise typer.BadParameter(
            f"must be a duration above zero, got {text!r}. Write 90s, 30m, 1h or 2d."
        )
    return float(found[1]) * _UNIT_SECONDS[found[2]]


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


def upfront_costs(per_device: float | None, retuning: float | None) -> dict[str, float]:
    """Gather what was named of the costs that are paid once."""
    named = {"per_device": per_device, "retuning": retuning}
    return {name: cost for name, cost in named.items() if cost is not None}


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str) -> int:
    """Read a number of bytes with its unit.

    Raises:
        typer.BadParameter: If it is not one.

    Example:
        >>> parse_bytes("600MiB"), parse_bytes("1.5 GB")
        (629145600, 1500000000)
    """
    match = _SIZE.fullmatch(text)
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or float(match[1]) * unit < 1:
        raise typer.BadParameter(
            f"must be a number of bytes such as 600MiB or 8GiB, got {text!r}. "
            "Name the memory that training may use."
        )
    return int(float(match[1]) * unit)


TaskName = Annotated[
    str,
    typer.Argument(
        metavar="TASK",
        help="A built-in name (see `rightbatch tasks`), path/to/file.py:function or "
        "package.module:function, the function returning a rightbatch.Task.",
    ),
]
ResultsFile = Annotated[Path, typer.Argument(metavar="RESULTS.json")]
AddFile = Annotated[
    Path | None,
    typer.Option(
        "--add",
        metavar="RESULTS.json",
        help="Take from this file what the other lacks: of the same task, on a device of the same "
        "kind.",
    ),
]
ObjectiveOption = Annotated[Objective, typer.Option(help="What to minimise.")]
Devices = Annotated[
    str,
    typer.Option(
        metavar="N[,N...]",
        callback=_checked_counts,
        help="Devices that will share a batch; several counts to choose from: 1,2,4,8.",
    ),
]
AllReduce = Annotated[
    float | None,
    typer.Option(
        "--allreduce-gbps",
        callback=_positive,
        help="Gigabits per second that a device sends while gradients are added up.",
    ),
]
DeadlineOption = Annotated[
    float | None,
    typer.Option(
        "--deadline",
        metavar="DURATION",
        parser=_duration_seconds,
        help="Longest time for the whole run: 90s, 30m, 1h, 2d.",
    ),
]
MaxCost = Annotated[
    float | None,
    typer.Option(callback=_positive, help="Most that the whole run may cost; needs the price."),
]
StepsToday = Annotated[
    float | None,
    typer.Option(
        callback=_positive, help="Optimizer steps of the whole run at today's batch size."
    ),
]
UpfrontPerDevice = Annotated[
    float | None,
    typer.Option(
        "--upfront-cost-per-device",
        callback=_positive,
        help="Paid once for each device beyond the fewest; needs the price.",
    ),
]
UpfrontRetuning = Annotated[
    float | None,
    typer.Option(
        "--upfront-cost-retuning",
        callback=_positive,
        help="Paid once for changing the batch size; needs the price.",
    ),
]
Price = Annotated[
    float | None, typer.Option(callback=_positive, help="Price of one device-hour, any currency.")
]
Budget = Annotated[
    float, typer.Option("--time-budget", callback=_positive, help="Seconds of measuring.")
]
MemoryLimit = Annotated[
    int | None,
    typer.Option(
        parser=parse_bytes,
        metavar="BYTES",
        help="Memory that training may use in all, such as 8GiB. Default: a safe share of what is "
        "free.",
    ),
]
Seed = Annotated[int, typer.Option(callback=_not_negative, help="Of every random draw.")]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Measure memory and throughput again if they are known.")
]
Energy = Annotated[
    bool,
    typer.Option(
        "--energy",
        help="Measure joules too, where the device has counters, in three fifths of the time "
        "budget.",
    ),
]
Output = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Write results.json and report.html here.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the results file, nothing else.")]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show where an error came from.")]
BatchSize = Annotated[
    int | None, typer.Option(callback=lambda v: v and _at_least_one(v), help="Default: today's.")
]
