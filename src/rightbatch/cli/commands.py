"""The commands: each calls one public function and shows what it found."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rightbatch._comm import Comm, launched_group
from rightbatch._environment import describe_environment, installed_extras
from rightbatch._format import format_bytes
from rightbatch._time import Progress as ReportProgress
from rightbatch._time import no_progress
from rightbatch.cli.calibration import calibrate_here, show_calibration
from rightbatch.cli.memory import exit_if_none_verified, measure_sizes
from rightbatch.cli.options import (
    AddFile,
    AllReduce,
    BatchSize,
    Budget,
    DeadlineOption,
    Devices,
    Energy,
    Fresh,
    Json,
    MaxCost,
    MemoryLimit,
    Objective,
    ObjectiveOption,
    Output,
    Price,
    ResultsFile,
    Seed,
    StepsToday,
    TaskName,
    Traceback,
    UpfrontPerDevice,
    UpfrontRetuning,
    device_counts,
    upfront_costs,
)
from rightbatch.cli.session import Session, kept_measurements, progress_bar, words
from rightbatch.cli.session import session as open_session
from rightbatch.cli.study import study_command
from rightbatch.cli.throughput import joined, measure_steps
from rightbatch.errors import RightBatchError
from rightbatch.find import find
from rightbatch.findings import Findings, load
from rightbatch.hardware import cpu_budget_bytes
from rightbatch.lr import race, range_test
from rightbatch.noise import measure_noise, track_noise
from rightbatch.plan import critical_batch_size, plan
from rightbatch.task import Task
from rightbatch.tasks import BUILT_IN, load_task

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Which batch size and learning rate to train with, measured on your hardware.",
)
app.command("study")(study_command)


@app.command("find")
def find_command(
    task: TaskName,
    objective: ObjectiveOption = Objective.TIME,
    devices: Devices = "1",
    price_per_hour: Price = None,
    allreduce_gbps: AllReduce = None,
    deadline: DeadlineOption = None,
    max_cost: MaxCost = None,
    steps_today: StepsToday = None,
    upfront_cost_per_device: UpfrontPerDevice = None,
    upfront_cost_retuning: UpfrontRetuning = None,
    time_budget: Budget = 60.0,
    fresh: Fresh = False,
    seed: Seed = 0,
    output: Output = None,
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Measure a task and say which batch size and learning rate to train it with."""
    with open_session(output, as_json=as_json, traceback=traceback) as session:
        _refuse_energy(objective)
        with progress_bar() as progress:
            find(
                load_task(task, progress=progress),
                objective=objective,
                devices=device_counts(devices),
                price_per_hour=price_per_hour,
                allreduce_gbps=allreduce_gbps,
                deadline_seconds=deadline,
                max_cost=max_cost,
                steps_today=steps_today,
                upfront_costs=upfront_costs(upfront_cost_per_device, upfront_cost_retuning),
                time_budget_seconds=time_budget,
                seed=seed,
                cache=kept_measurements(fresh=fresh),
                on_part=session.keep,
                progress=progress,
            )
    exit_if_none_verified(session.findings)


def _refuse_energy(objective: Objective) -> None:
    if objective is Objective.ENERGY:
        raise typer.BadParameter(
            "'energy' needs measured joules, which find leaves out. Measure them with `rightbatch "
            "throughput --energy`, then plan; or use time or cost.",
            param_hint="--objective",
        )


def _measure(
    spec: str,
    measure: Callable[[Session, Task, ReportProgress], None],
    *,
    output: Path | None,
    as_json: bool,
    traceback: bool,
    comm: Comm | None = None,
) -> Findings | None:
    """Load a task, run some instruments on it, deliver what they found: the first rank does."""
    first = comm is None or comm.rank == 0
    in_session = open_session(output if first else None, as_json=as_json, traceback=traceback)
    with in_session as session, progress_bar() if first else nullcontext(no_progress) as progress:
        task = load_task(spec, progress=progress)
        session.keep(Findings(task=task.facts(), environment=describe_environment(task.device)))
        measure(session, task, progress)
        found = session.findings
        if not first:
            session.findings = None
    return found


@app.command("memory")
def memory_command(
    task: TaskName,
    memory_limit: MemoryLimit = None,
    time_budget: Budget = 60.0,
    fresh: Fresh = False,
    seed: Seed = 0,
    output: Output = None,
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Find which batch sizes fit; under torchrun on all ranks."""
    with launched_group() as comm:

        def measure(session: Session, loaded: Task, progress: ReportProgress) -> None:
            measure_sizes(
                session,
                loaded,
                comm,
                kept_measurements(fresh=fresh),
                limit_bytes=memory_limit,
                time_budget_seconds=time_budget,
                seed=seed,
                progress=progress,
            )

        found = _measure(
            task, measure, output=output, as_json=as_json, traceback=traceback, comm=comm
        )
    exit_if_none_verified(found, first=comm.rank == 0)


@app.command("throughput")
def throughput_command(
    task: TaskName,
    time_budget: Budget = 60.0,
    energy: Energy = False,
    fresh: Fresh = False,
    seed: Seed = 0,
    output: Output = None,
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Time a training step against the batch size; under torchrun communication too."""
    with launched_group() as comm:

        def measure(session: Session, loaded: Task, progress: ReportProgress) -> None:
            measure_steps(
                session,
                loaded,
                comm,
                kept_measurements(fresh=fresh),
                time_budget_seconds=time_budget,
                seed=seed,
                energy=energy,
                progress=progress,
            )

        _measure(task, measure, output=output, as_json=as_json, traceback=traceback, comm=comm)


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

    def measure(session: Session, loaded: Task, progress: ReportProgress) -> None:
        now = measure_noise(
            loaded, time_budget_seconds=0.3 * time_budget, seed=seed, progress=progress
        )
        optimizer = type(loaded.optimizer).__name__
        critical = critical_batch_size(now, optimizer=optimizer)
        # The look at the loss may have found something to say.
        session.add("noise", noise=now, critical_batch_size=critical, task=loaded.facts())
        track = track_noise(
            loaded,
            batch_size=batch_size,
            time_budget_seconds=0.7 * time_budget,
            trust_loss=True,  # looked at a moment ago
            seed=seed,
            progress=progress,
        )
        critical = critical_batch_size(now, track, optimizer=optimizer)
        session.add("track", track=track, critical_batch_size=critical)

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

    def measure(session: Session, loaded: Task, progress: ReportProgress) -> None:
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
    add: AddFile = None,
    objective: ObjectiveOption = Objective.TIME,
    devices: Devices = "1",
    price_per_hour: Price = None,
    allreduce_gbps: AllReduce = None,
    deadline: DeadlineOption = None,
    max_cost: MaxCost = None,
    steps_today: StepsToday = None,
    upfront_cost_per_device: UpfrontPerDevice = None,
    upfront_cost_retuning: UpfrontRetuning = None,
    output: Output = None,
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Plan again from a results file, without measuring again."""
    with open_session(output, as_json=as_json, traceback=traceback) as session:
        findings = load(results) if add is None else joined(load(results), load(add))
        again = plan(
            findings,
            objective=objective.value,
            devices=device_counts(devices),
            price_per_hour=price_per_hour,
            allreduce_gbps=allreduce_gbps,
            deadline_seconds=deadline,
            max_cost=max_cost,
            steps_today=steps_today,
            upfront_costs=upfront_costs(upfront_cost_per_device, upfront_cost_retuning),
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
    with open_session(None, as_json=False, traceback=traceback) as session:
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
def doctor_command(
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Try the noise engine on a model with known answers, here; also under torchrun.",
        ),
    ] = False,
    traceback: Traceback = False,
) -> None:
    """Show what a bug report needs: versions, device, extras, memory budget, data files."""
    if calibrate:
        with open_session(None, as_json=False, traceback=traceback):
            found, first = calibrate_here()
        if first:
            show_calibration(found)
        raise typer.Exit(0 if found.passed else 1)
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in describe_environment().items():
        table.add_row(name, value)
    try:
        table.add_row("memory budget", format_bytes(cpu_budget_bytes()))
    except RightBatchError as error:
        table.add_row("memory budget", escape(str(error)))
    for name, installed in installed_extras().items():
        hint = "installed" if installed else f"absent: pip install 'rightbatch[{name}]'"
        table.add_row(f"extra {name}", escape(hint))
    for name, built_in in BUILT_IN.items():
        try:
            table.add_row(f"task {name}", escape(built_in.whereabouts()))
        except RightBatchError as error:
            table.add_row(f"task {name}", escape(str(error)))
    Console(highlight=False).print(table)
