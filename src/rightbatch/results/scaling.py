"""What a change of batch size does to one hyperparameter."""

from dataclasses import dataclass
from enum import StrEnum


class Validity(StrEnum):
    """Whether a rule was applied where it is known to hold."""

    HOLDS = "yes"
    OUTSIDE = "no"
    UNCHECKED = "not checked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One setting before and after, also where nothing changed."""

    parameter: str  # as in the optimizer's group; a beta by its place
    before: float
    after: float
    why: str
    validity: Validity
    group: int | None = None  # index of the parameter group; None: not of a group, or of all
