"""``rightbatch doctor --calibrate``: the noise engine against known answers, in this set-up."""

from contextlib import nullcontext

from rich.console import Console
from rich.table import Table

from rightbatch._comm import launched_group
from rightbatch._format import format_interval, format_number
from rightbatch._time import no_progress
from rightbatch.cli.session import progress_bar, words
from rightbatch.noise import Calibration, calibrate


def calibrate_here() -> tuple[Calibration, bool]:
    """Calibrate on every rank that was launched.

    Returns:
        What was found, and whether this rank is the one that says so.
    """
    with launched_group() as comm:
        first = comm.rank == 0
        with progress_bar() if first else nullcontext(no_progress) as progress:
            return calibrate(progress=progress), first


def show_calibration(found: Calibration) -> None:
    """Print a row for each way, and one line on standard error where some failed."""
    _show(found)
    failed = [row.name for row in found.rows if not row.passed]
    if failed:
        words.print(
            f"error: {len(failed)} of {len(found.rows)} rows missed the known answer: "
            f"{', '.join(dict.fromkeys(failed))}. Noise scales measured in this set-up are not to "
            "be trusted: report it with the output of `rightbatch doctor`.",
            style="bold red",
        )


def _show(found: Calibration) -> None:
    ranks = "1 rank" if found.ranks == 1 else f"{found.ranks} ranks"
    table = Table(box=None, pad_edge=False)
    for column in ("precision", "way", "truth", "estimate (95 %)", ""):
        table.add_column(column, no_wrap=True)
    for row in found.rows:
        table.add_row(
            row.precision,
            row.name,
            format_number(row.truth, 3),
            format_interval(row.estimate, row.low, row.high, number=lambda x: format_number(x, 3)),
            "pass" if row.passed else "FAIL",
        )
    console = Console(highlight=False)
    console.print(f"Noise scale of a linear model, on {found.device}, {ranks}")
    console.print(table)
