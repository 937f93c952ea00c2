"""What a controller did, and what it has decided and not done yet."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

from rightbatch.batches import Decision


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One change of the batch size, or of the rate in its place."""

    examples_seen: int  # before the first step of the new size
    from_batch_size: int
    to_batch_size: int
    micro_batch_size: int  # from now on
    accumulation_steps: int  # from now on
    reason: str  # the schedule's
    scaling: str  # what became of the hyperparameters, as a table or a sentence
    valid: bool | None  # whether every scaling rule holds there; None: the schedule says the rate

    def __str__(self) -> str:
        """Say it in one line."""
        return (
            f"after {self.examples_seen} examples {self.from_batch_size} -> {self.to_batch_size} "
            f"({self.micro_batch_size} x {self.accumulation_steps} a device): {self.reason}"
        )


@final
@dataclass(frozen=True, slots=True)
class Waiting:
    """A move that is decided, and whose first batch has not arrived."""

    decision: Decision
    batches: int  # of the present size that are still to come

    def after_a_batch(self) -> "Waiting":
        """Count one that came."""
        return replace(self, batches=self.batches - 1)


def move_from_state(state: Mapping[str, Any]) -> Move:
    """Read what ``dataclasses.asdict`` wrote."""
    return Move(**state)


def waiting_from_state(state: Mapping[str, Any] | None) -> Waiting | None:
    """Read what ``dataclasses.asdict`` wrote."""
    return None if state is None else Waiting(Decision(**state["decision"]), state["batches"])
