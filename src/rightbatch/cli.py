"""The command line: parse, call one public function, render.

Words and progress go to standard error. Standard output gets the report, or with ``--json`` the
results file and nothing else. Exit codes: 0 done; 1 the task failed or nothing could be
recommended; 2 wrong usage; 130 interrupted.
"""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from rightbatch import _codec
from rightbatch._environment import describe_environment, installed_extras
from rightbatch._format import format_bytes
from rightbatch._time import Deadline
from rightbatch._time import Progress as ReportProgress
from rightbatch.errors import ResultsError, RightBatchError
from rightbatch.find import Findings, find, load
from rightbatch.hardware import cpu_budget_bytes, measure_memory, measure_throughput
from rightbatch.lr import race, range_test
from rightbatch.noise import measure_noise, track_noise
from rightbatch.plan import critical_batch_size, plan
from rightbatch.results import Status
from rightbatch.task import Task
from rightbatch.tasks import BUILT_IN, UnknownTask, load_task

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Which batch size and learning rate to train with, measured on your hardware.",
)
words = Console(stderr=True, highlight=False)

_INTERRUPTED = 130


class Objective(StrEnum):
    """What a plan minimises."""

    TIME = "time"
    COST = "cost"
    ENERGY = "energy"


def _at_least_one(value: int) -> int:
    if value < 1:
        raise typer.BadParameter(f"must be at least 1, got {value}. Count the devices you have.")
    return value


def _positive(value: float | None) -> float | None:
    if value is not None and not value > 0:
        raise typer.BadParameter(f"must be positive, got {value:g}. Leave it out for the default.")
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
Seed = Annotated[int, typer.Option(help="Of every random draw.")]
Output = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Write results.json and report.html here.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the results file, nothing else.")]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show where an error came from.")]
BatchSize = Annotated[
    int | None, typer.Option(callback=lambda v: v and _at_least_one(v), help="Default: today's.")
]


@dataclass
class _Session:
    """One command: what it has found so far, and where that goes."""

    output: Path | None
    as_json: bool
    traceback: bool
    findings: Findings | None = None
    watch: Deadline = field(default_factory=lambda: Deadline(math.inf))

    def keep(self, findings: Findings) -> None:
        self.findings = findings

    def add(self, name: str, **parts: Any) -> None:
        """Keep more parts; an interrupt from here on loses none of them."""
        if self.findings is None:
            raise RuntimeError("a session begins with the task's facts")
        took = {**self.findings.seconds, name: self.watch.elapsed_seconds()}
        self.findings = replace(self.findings, seconds=took, **parts)

    def deliver(self) -> None:
        """Write the files, then print the one thing that was asked for."""
        if self.findings is None:
            return
        if self.output is not None:
            self.findings.save(self.output / "results.json")
            self.findings.to_html(self.output / "report.html")
        text = _codec.dumps(self.findings) if self.as_json else str(self.findings)
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        sys.stdout.flush()
        if self.output is not None:
            words.print(f"Wrote {self.output / 'results.json'} and {self.output / 'report.html'}.")


@contextmanager
def _session(output: Path | None, *, as_json: bool, traceback: bool) -> Iterator[_Session]:
    """Turn errors into one message and an exit code; keep what was measured."""
    session = _Session(output, as_json, traceback)
    try:
        if output is not None:
            _prepare(output)
        yield session
        session.deliver()
    except KeyboardInterrupt:
        words.print("Interrupted. Everything is as it was before.")
        if session.findings is not None and session.findings.seconds:
            words.print(f"Measured so far: {', '.join(session.findings.seconds)}.")
            session.deliver()
        raise typer.Exit(_INTERRUPTED) from None
    except (ResultsError, UnknownTask) as error:
        _fail(error, 2, traceback=traceback)
    except RightBatchError as error:
        _fail(error, 1, traceback=traceback)
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except Exception as error:
        _fail(error, 1, traceback=traceback, unexpected=True)


def _fail(error: Exception, code: int, *, traceback: bool, unexpected: bool = False) -> NoReturn:
    if traceback:
        raise error
    kind = f"{type(error).__name__}: " if unexpected else ""
    words.print(f"error: {kind}{error}", style="bold red", markup=False, soft_wrap=True)
    for note in getattr(error, "__notes__", ()):
        words.print(note, markup=False, soft_wrap=True)
    if unexpected:
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
def _progress_bar() -> Iterator[ReportProgress]:
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


@app.command("find")
def find_command(
    task: TaskName,
    objective: ObjectiveOption = Objective.TIME,
    devices: Devices = 1,
    price_per_hour: Price = None,
    time_budget: Budget = 60.0,
    seed: Seed = 0,
    output: Output = None,
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Measure a task and say which batch size and learning rate to train it with."""
    with _session(output, as_json=as_json, traceback=traceback) as session:
        _refuse_energy(objective)
        with _progress_bar() as progress:
            find(
                load_task(task),
                objective=objective,
                devices=devices,
                price_per_hour=price_per_hour,
                time_budget_seconds=time_budget,
                seed=seed,
                on_part=session.keep,
                progress=progress,
            )
    _exit_if_nothing_fits(session.findings)


def _refuse_energy(objective: Objective) -> None:
    if objective is Objective.ENERGY:
        raise typer.BadParameter(
            "'energy' needs measured joules, which no instrument reads yet. Use time or cost.",
            param_hint="--objective",
        )


def _exit_if_nothing_fits(findings: Findings | None) -> None:
    if findings and findings.memory and findings.memory.status is Status.NOTHING_FITS:
        words.print(f"error: {Status.NOTHING_FITS.sentence}", style="bold red")
        raise typer.Exit(1)


def _measure(
    spec: str,
    measure: Callable[[_Session, Task, ReportProgress], None],
    *,
    output: Path | None,
    as_json: bool,
    traceback: bool,
) -> None:
    """Load a task, run some instruments on it, deliver what they found."""
    in_session = _session(output, as_json=as_json, traceback=traceback)
    with in_session as session, _progress_bar() as progress:
        task = load_task(spec)
        session.keep(Findings(task=task.facts(), environment=describe_environment(task.device)))
        measure(session, task, progress)
    _exit_if_nothing_fits(session.findings)


@app.command("memory")
def memory_command(
    task: TaskName,
    time_budget: Budget = 60.0,
    seed: Seed = 0,
    output: Output = None,
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Find which batch sizes fit."""

    def measure(session: _Session, loaded: Task, progress: ReportProgress) -> None:
        profile = measure_memory(
            loaded, time_budget_seconds=time_budget, seed=seed, progress=progress
        )
        session.add("memory", memory=profile)

    _measure(task, measure, output=output, as_json=as_json, traceback=traceback)


@app.command("throughput")
def throughput_command(
    task: TaskName,
    time_budget: Budget = 60.0,
    seed: Seed = 0,
    output: Output = None,
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Time a training step against the batch size."""

    def measure(session: _Session, loaded: Task, progress: ReportProgress) -> None:
        profile = measure_throughput(
            loaded, time_budget_seconds=time_budget, seed=seed, progress=progress
        )
        session.add("throughput", throughput=profile)

    _measure(task, measure, output=output, as_json=as_json, traceback=traceback)


@app.command("noise")
def noise_command(
    task: TaskName,
    batch_size: BatchSize = None,
    time_budget: Budget = 60.0,
    seed: Seed = 0,
    output: Output = None,
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Measure the gradient noise scale, now and along a short run."""

    def measure(session: _Session, loaded: Task, progress: ReportProgress) -> None:
        now = measure_noise(
            loaded, time_budget_seconds=0.3 * time_budget, seed=seed, progress=progress
        )
        session.add("noise", noise=now, critical_batch_size=critical_batch_size(now))
        track = track_noise(
            loaded,
            batch_size=batch_size,
            time_budget_seconds=0.7 * time_budget,
            seed=seed,
            progress=progress,
        )
        session.add("track", track=track, critical_batch_size=critical_batch_size(now, track))

    _measure(task, measure, output=output, as_json=as_json, traceback=traceback)


@app.command("lr")
def lr_command(
    task: TaskName,
    batch_size: BatchSize = None,
    time_budget: Budget = 60.0,
    seed: Seed = 0,
    output: Output = None,
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Find the learning rate for one batch size: a range test, then a race."""

    def measure(session: _Session, loaded: Task, progress: ReportProgress) -> None:
        size = batch_size or loaded.default_batch_size
        curve = range_test(
            loaded,
            batch_size=size,
            time_budget_seconds=0.3 * time_budget,
            seed=seed,
            progress=progress,
        )
        session.add("learning_rate", learning_rate=curve)
        raced = race(
            loaded,
            batch_size=size,
            centre=curve.suggestion,
            upper=curve.edge,
            time_budget_seconds=0.7 * time_budget,
            seed=seed,
            progress=progress,
        )
        session.add("race", race=raced)

    _measure(task, measure, output=output, as_json=as_json, traceback=traceback)


@app.command("plan")
def plan_command(
    results: ResultsFile,
    objective: ObjectiveOption = Objective.TIME,
    devices: Devices = 1,
    price_per_hour: Price = None,
    output: Output = None,
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Plan again from a results file, without measuring again."""
    with _session(output, as_json=as_json, traceback=traceback) as session:
        _refuse_energy(objective)
        findings = load(results)
        again = plan(
            findings, objective=objective.value, devices=devices, price_per_hour=price_per_hour
        )
        session.keep(replace(findings, plan=again))


@app.command("report")
def report_command(
    results: ResultsFile,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the report page here.")
    ] = None,
    traceback: Traceback = False,
) -> None:
    """Show a results file again, as text or as a page."""
    with _session(None, as_json=False, traceback=traceback) as session:
        findings = load(results)
        if html is None:
            session.keep(findings)
        else:
            findings.to_html(html)
            words.print(f"Wrote {html}.")


@app.command("tasks")
def tasks_command() -> None:
    """List the built-in tasks."""
    table = Table(box=None, pad_edge=False)
    for column in ("task", "batch size", "what it trains"):
        table.add_column(column)
    for name, built_in in BUILT_IN.items():
        table.add_row(name, str(built_in.batch_size), built_in.description)
    Console(highlight=False).print(table)


@app.command("doctor")
def doctor_command() -> None:
    """Show what a bug report needs: versions, device, extras, memory budget, data files."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in describe_environment().items():
        table.add_row(name, value)
    table.add_row("memory budget", format_bytes(cpu_budget_bytes()))
    for name, installed in installed_extras().items():
        hint = "installed" if installed else f"absent: pip install 'rightbatch[{name}]'"
        table.add_row(f"extra {name}", hint)
    for name, built_in in BUILT_IN.items():
        table.add_row(f"task {name}", built_in.whereabouts())
    Console(highlight=False).print(table)


def main() -> None:
    """Run the command line."""
    app()
