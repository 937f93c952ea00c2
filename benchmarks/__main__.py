"""``python -m benchmarks NAME [TASK]``: run one benchmark, print its table, keep its results."""

import sys
from types import ModuleType
from typing import Annotated, Any

import typer

from benchmarks import controller as controllers
from benchmarks import coverage as coverages
from benchmarks import decision as decisions
from benchmarks import geometry as geometries
from benchmarks import ghost_norm as ghost_norms
from benchmarks import increase_batch as increase_batches
from benchmarks import memory as memories
from benchmarks import monitor as monitors
from benchmarks import noise as noises
from benchmarks import paging as pagings
from benchmarks import per_example as per_examples
from benchmarks import scaling as scalings
from benchmarks import steps_model as step_models
from benchmarks import throughput as throughputs

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

# What `noise` runs, one after the other; each can be run alone.
NOISE: dict[str, tuple[ModuleType, Any]] = {
    "probe": (noises, noises.noise),
    "monitor": (monitors, monitors.monitor),
    "per-example": (per_examples, per_examples.per_example),
    "coverage": (coverages, coverages.coverage),
    "geometry": (geometries, geometries.geometry),
}

# What `training` runs.
TRAINING: dict[str, tuple[ModuleType, Any]] = {
    "scaling": (scalings, scalings.scaling),
    "ghost": (ghost_norms, ghost_norms.ghost_norm),
    "increase": (increase_batches, increase_batches.increase_batch),
    "controller": (controllers, controllers.controller),
}


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
def noise(
    part: Annotated[str, typer.Argument(help=f"all, {', '.join(NOISE)}")] = "all",
) -> None:
    """The noise engine: exactness, cost, coverage; all parts take about 15 minutes."""
    _run(NOISE, part)


@app.command()
def training(
    part: Annotated[str, typer.Argument(help=f"all, {', '.join(TRAINING)}")] = "all",
) -> None:
    """What must change with the batch size: rates that carry over, ghosts, growing batches."""
    _run(TRAINING, part)


def _run(parts: dict[str, tuple[ModuleType, Any]], part: str) -> None:
    if part != "all" and part not in parts:
        raise typer.BadParameter(f"must be all or one of {', '.join(parts)}, got {part!r}")
    for name, (module, run) in parts.items():
        if part in ("all", name):
            _say(f"-- {name}")
            result = run(_say)
            module.write(result)
            sys.stdout.write(module.as_markdown(result) + "\n")


@app.command()
def memory(
    model: Annotated[str, typer.Argument(help=f"all, {', '.join(memories.MODELS)}")] = "all",
) -> None:
    """The largest batch that fits: three models, three budgets, four finders; about 90 minutes."""
    if model not in ("all", *memories.MODELS):
        raise typer.BadParameter(
            f"must be all or one of {', '.join(memories.MODELS)}, got {model!r}"
        )
    models = list(memories.MODELS) if model == "all" else [model]
    result = memories.memory(_say, models, keep=memories.write)
    sys.stdout.write(memories.as_markdown(result))


@app.command()
def paging() -> None:
    """What a heap that keeps its pages does for a step on a CPU; about 10 minutes."""
    result = pagings.paging(_say)
    pagings.write(result)
    sys.stdout.write(pagings.as_markdown(result))


@app.command("steps-model")
def steps_model() -> None:
    """Data to target against batch size: the law of steps on public tuned runs."""
    result = step_models.steps_model(_say)
    step_models.write(result)
    sys.stdout.write(step_models.as_markdown(result))


@app.command()
def throughput() -> None:
    """Step times between measured sizes, and measured again; about 6 minutes."""
    result = throughputs.throughput(_say)
    throughputs.write(result)
    sys.stdout.write(throughputs.as_markdown(result))


if __name__ == "__main__":
    app()
