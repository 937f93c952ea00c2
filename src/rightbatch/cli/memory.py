"""``rightbatch memory``: which batch sizes fit, and the exit where none was verified."""

import typer

from rightbatch.cli.session import words
from rightbatch.findings import Findings
from rightbatch.report.words import none_verified


def exit_if_none_verified(findings: Findings | None) -> None:
    """End with 1 where no size ran, but for a plan that was made all the same."""
    if findings is None or findings.memory is None or findings.plan is not None:
        return
    memory = findings.memory
    if memory.max_verified_batch_size == 0:
        words.print(
            f"error: {none_verified(memory)}. {memory.status.sentence}",
            style="bold red",
            soft_wrap=True,
        )
        raise typer.Exit(1)
