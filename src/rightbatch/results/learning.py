"""Learning rates, and the batch size beyond which steps stop getting fewer."""

from dataclasses import dataclass

from rightbatch.results.status import Status


@dataclass(frozen=True, slots=True, kw_only=True)
class LRPoint:
    """Median smoothed loss of the range test at one rate, with the spread over repeats."""

    learning_rate: float
    loss: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LRCurve:
    """What a repeated range test saw."""

    batch_size: int
    points: tuple[LRPoint, ...]
    edge: float | None  # largest rate before the loss rises for good; None: never rose
    suggestion: float | None
    low: float | None  # spread of the suggestion over repeats
    high: float | None
    status: Status


@dataclass(frozen=True, slots=True, kw_only=True)
class RaceEntry:
    """One rate in the race."""

    learning_rate: float
    steps: int  # how far it was let run
    loss: float | None  # held-out-in-time loss at the end; None: diverged
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LRRace:
    """Successive halving of a few rates at one batch size, from the same weights."""

    batch_size: int
    entries: tuple[RaceEntry, ...]  # ascending in learning_rate
    suggestion: float | None
    low: float | None  # rates that cannot be told from the suggestion
    high: float | None
    status: Status


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticalBatchSize:
    """The batch size at which a run needs twice the fewest possible steps."""

    value: float | None
    low: float
    high: float | None
    source: str  # "noise", "branch" or "sweep"
    status: Status


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsFit:
    """How the examples needed to reach a target grow with the batch size: E_min (1 + b / B_c)."""

    minimal_examples: float | None  # E_min, at the smallest batches; None: B_c is not determined
    critical_batch_size: CriticalBatchSize  # B_c, which a plan can be made with
    residual: float  # root mean square of log(measured / fitted)
    num_sizes: int
    status: Status
