"""The results that a plan is made from, sorted by kind."""

from dataclasses import dataclass, fields
from typing import Any, TypeVar

from rightbatch.errors import CannotPlan
from rightbatch.plan.critical import critical_batch_size
from rightbatch.results import (
    Communication,
    CriticalBatchSize,
    EnergyProfile,
    LRCurve,
    LRRace,
    MemoryProfile,
    NoiseScale,
    NoiseTrack,
    Results,
    TaskFacts,
    ThroughputProfile,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Inputs:
    """The results, sorted by kind."""

    throughput: ThroughputProfile
    critical: CriticalBatchSize
    memory: MemoryProfile | None
    curve: LRCurve | None
    race: LRRace | None
    task: TaskFacts | None
    communication: Communication | None = None
    energy: EnergyProfile | None = None


def sort_results(results: tuple[Any, ...]) -> Inputs:
    """Sort results by kind; whole `Results` count as their parts, and of two the later.

    Raises:
        CannotPlan: If the step times or the noise are missing.
    """
    flat: list[Any] = []
    for result in results:
        if isinstance(result, Results):
            parts = (getattr(result, field.name) for field in fields(result))
            flat.extend(part for part in parts if part is not None)
        else:
            flat.append(result)

    def last(kind: type[T]) -> T | None:
        return next((part for part in reversed(flat) if isinstance(part, kind)), None)

    throughput = last(ThroughputProfile)
    if throughput is None or not throughput.points:
        raise CannotPlan(
            "a plan needs seconds per step, got no ThroughputProfile with points. "
            "Measure one: rightbatch.measure_throughput(task)."
        )
    # Evidence beats the stand-in: a sweep or a branch comes before the noise. What an earlier
    # plan made of the noise is judged afresh.
    critical = last(CriticalBatchSize)
    if critical is None or critical.source == "noise":
        facts = last(TaskFacts)
        optimizer = facts.optimizer if facts else None
        judged = critical_batch_size(last(NoiseScale), last(NoiseTrack), optimizer=optimizer)
        critical = judged or critical
    if critical is None:
        raise CannotPlan(
            "a plan needs the gradient noise, got no NoiseScale, NoiseTrack or CriticalBatchSize. "
            "Measure it: rightbatch.track_noise(task)."
        )
    return Inputs(
        throughput,
        critical,
        last(MemoryProfile),
        last(LRCurve),
        last(LRRace),
        last(TaskFacts),
        last(Communication),
        last(EnergyProfile),
    )
