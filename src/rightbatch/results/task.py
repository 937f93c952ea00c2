"""What was measured."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFacts:
    """What was measured, as far as a reader of the results needs to know."""

    name: str
    parameters: int  # trainable, tied weights once
    examples: int | None  # None: a stream of unknown length
    batch_size: int | None  # what the user trains with today
    learning_rate: float | None  # of the optimizer's first group, today
    optimizer: str  # class name
    hyperparameters: dict[str, float]  # the optimizer's first group, numbers only
    num_workers: int = 0
    warnings: tuple[str, ...] = ()  # what preflight found, a sentence each
