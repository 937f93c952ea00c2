"""One command from start to end: its progress, its errors, its exit code, what it delivers."""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from traceback import format_exception
from typing import Any, NoReturn, TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from rightbatch import _codec
from rightbatch._time import Deadline
from rightbatch._time import Progress as ReportProgress
from rightbatch.cli import INTERRUPTED
from rightbatch.errors import ResultsError, RightBatchError, UnknownTask
from rightbatch.findings import Findings
from rightbatch.hardware.cache import MeasurementCache
from rightbatch.tasks.data_files import cache_folder

words = Console(stderr=True, highlight=False)


@dataclass
class Session:
    """One command: what it has found so far, and where that goes."""

    output: Path | None
    as_json: bool
    traceback: bool
    stdout: TextIO = field(default_factory=lambda: sys.stdout)
    findings: Findings | None = None
    watch: Deadline = field(default_factory=lambda: Deadline(math.inf))

    def keep(self, findings: Findings) -> None:
        """Keep all findings so far, in the output folder too: then nothing can lose them."""
        self.findings = findings
        if self.output is not None and findings.seconds:
            findings.save(self.output / "results.json")

    def add(self, name: str, **parts: Any) -> None:
        """Keep more parts; an interrupt from here on loses none of them."""
        if self.findings is None:
            raise RuntimeError("a session begins with the task's facts")
        before = self.findings.seconds
        took = {**before, name: self.watch.elapsed_seconds() - sum(before.values())}
        self.keep(replace(self.findings, seconds=took, **parts))

    def deliver(self) -> None:
        """Write the files, then print the one thing that was asked for."""
        if self.findings is None:
            return
        if self.output is not None:
            self.findings.save(self.output / "results.json")
            self.findings.to_html(self.output / "report.html")
        text = _codec.dumps(self.findings) if self.as_json else str(self.findings)
        self.stdout.write(text if text.endswith("\n") else text + "\n")
        self.stdout.flush()
        if self.output is not None:
            words.print(f"Wrote {self.output / 'results.json'} and {self.output / 'report.html'}.")


@contextmanager
def session(output: Path | None, *, as_json: bool, traceback: bool) -> Iterator[Session]:
    """Turn errors into one message and an exit code; keep what was measured."""
    session = Session(output, as_json, traceback)
    try:
        # What the user's own code prints must not end up between the lines of the results.
        with redirect_stdout(sys.stderr):
            if output is not None:
                _prepare(output)
            yield session
            session.deliver()
    except KeyboardInterrupt:
        words.print("Interrupted. Everything is as it was before.")
        if session.findings is not None and session.findings.seconds:
            words.print(f"Measured so far: {', '.join(session.findings.seconds)}.")
            session.deliver()
        raise typer.Exit(INTERRUPTED) from None
    except (ResultsError, UnknownTask) as error:
        _fail(error, 2, traceback=traceback)
    except RightBatchError as error:
        _fail(error, 1, traceback=traceback)
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except Exception as error:
        _fail(error, 1, traceback=traceback, unexpected=True)


def kept_measurements(*, fresh: bool) -> MeasurementCache:
    """Open the folder of earlier measurements; what is taken from it is told."""
    folder = cache_folder() / "measurements"
    return MeasurementCache(
        folder, fresh=fresh, say=lambda line: words.print(line, markup=False, soft_wrap=True)
    )


def _fail(error: Exception, code: int, *, traceback: bool, unexpected: bool = False) -> NoReturn:
    if traceback:
        words.print("".join(format_exception(error)), markup=False, soft_wrap=True)
    kind = f"{type(error).__name__}: " if unexpected else ""
    words.print(f"error: {kind}{error}", style="bold red", markup=False, soft_wrap=True)
    for note in getattr(error, "__notes__", ()):
        if "\n" not in note:  # longer ones are tracebacks of other processes
            words.print(note, markup=False, soft_wrap=True)
    if unexpected and not traceback:
        words.print("Run again with --traceback to see where it came from.")
    raise typer.Exit(code)


def _prepare(output: Path) -> None:
    """Make the output folder and try to write there, before anything is measured."""
    trial = output / ".rightbatch.partial"
    try:
        output.mkdir(parents=True, exist_ok=True)
        trial.write_text("")
        trial.unlink()
    except OSError as error:
        raise ResultsError(
            f"cannot write to {str(output)!r}: {error.strerror}. "
            "Name a folder that you may write to with --output."
        ) from error


@contextmanager
def progress_bar() -> Iterator[ReportProgress]:
    """Show a progress bar with the remaining time on standard error."""
    bar = Progress(
        TextColumn("{task.description:<40}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=words,
        transient=True,
    )
    with bar:
        row = bar.add_task("preparing", total=1.0)
        yield lambda fraction, note: bar.update(row, completed=fraction, description=note)
