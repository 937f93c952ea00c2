"""Every setting of the optimizer at the batch size of the plan."""

from dataclasses import dataclass, field, replace

from rightbatch._format import format_count
from rightbatch.plan.inputs import Inputs
from rightbatch.results import Change
from rightbatch.scaling import scaled_hyperparameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What to train with, and what had to change for it."""

    hyperparameters: dict[str, float] = field(default_factory=dict[str, float])
    changes: tuple[Change, ...] = ()
    warnings: tuple[str, ...] = ()


def settings_at(
    inputs: Inputs, batch_size: int, learning_rate: float | None, source: str
) -> Settings:
    """Move today's settings to another batch size, with the learning rate that was decided on.

    Args:
        inputs: With the task's facts; without them nothing is known of the optimizer.
        batch_size: To train with.
        learning_rate: At that size; ``None``: by rule.
        source: Where that rate comes from, in words.

    Returns:
        The settings by name. Without today's batch size all but the rate stay, with a warning.
    """
    facts = inputs.task
    today = dict(facts.hyperparameters) if facts else {}
    kept = today if learning_rate is None else {**today, "lr": learning_rate}
    if facts is None or "lr" not in today:
        return Settings(hyperparameters=kept)
    if facts.batch_size is None:
        warning = (
            f"Today's batch size is not known: all settings of {facts.optimizer} but the learning "
            f"rate stay, whether or not they suit {format_count(batch_size)} examples. Give it to "
            "the task: Task(..., batch_size=...)."
        )
        return Settings(hyperparameters=kept, warnings=(warning,))
    report = scaled_hyperparameters(
        facts.optimizer,
        today,
        facts.batch_size,
        batch_size,
        learning_rate=learning_rate,
        critical_batch_size=inputs.critical.value,
    )
    return Settings(
        hyperparameters={**today, **report.hyperparameters},
        changes=tuple(
            replace(change, why=source) if source and change.parameter == "lr" else change
            for change in report.changes
        ),
        warnings=report.warnings,
    )
