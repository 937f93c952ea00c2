"""``rightbatch memory``: which batch sizes fit, and the exit where none was verified."""

from typing import Any

import typer

from rightbatch._comm import Comm
from rightbatch._time import Progress
from rightbatch.cli.session import Session, words
from rightbatch.findings import Findings
from rightbatch.hardware import measure_memory
from rightbatch.hardware.agreement import largest
from rightbatch.hardware.cache import MeasurementCache, free_memory
from rightbatch.report.words import none_verified
from rightbatch.task import Task


def measure_sizes(
    session: Session,
    task: Task,
    comm: Comm,
    cache: MeasurementCache,
    *,
    limit_bytes: int | None,
    time_budget_seconds: float,
    seed: int,
    progress: Progress,
) -> None:
    """Measure on every rank that was launched, unless the first one knows from before."""
    flags: dict[str, Any] = {"seed": seed}
    flags |= {"limit": limit_bytes} if limit_bytes else {"free": free_memory(task.device)}
    flags |= {"ranks": comm.world_size} if comm.world_size > 1 else {}
    profile = cache.get("memory", task, **flags) if comm.rank == 0 else None
    if not largest(comm, profile is not None):
        profile = measure_memory(
            task,
            budget_bytes=limit_bytes,
            time_budget_seconds=time_budget_seconds,
            seed=seed,
            progress=progress,
        )
        # A limit that was lowered to what is free now may be as wide as it says next time.
        if comm.rank == 0 and limit_bytes in (None, profile.budget_bytes):
            cache.put("memory", profile, task, **flags)
    session.add("memory", memory=profile)


def exit_if_none_verified(findings: Findings | None, *, first: bool = True) -> None:
    """End with 1 where no size ran, but for a plan that was made all the same.

    Args:
        findings: Of this process.
        first: Whether to say why, as one rank does.
    """
    if findings is None or findings.memory is None or findings.plan is not None:
        return
    memory = findings.memory
    if memory.max_verified_batch_size > 0:
        return
    if first:
        words.print(
            f"error: {none_verified(memory)}. {memory.status.sentence}",
            style="bold red",
            soft_wrap=True,
        )
    raise typer.Exit(1)
