"""All results of one task together."""

from dataclasses import dataclass, field

from rightbatch.results.hardware import (
    Communication,
    EnergyProfile,
    MemoryProfile,
    ThroughputProfile,
)
from rightbatch.results.learning import CriticalBatchSize, LRCurve, LRRace
from rightbatch.results.noise import NoiseScale, NoiseTrack
from rightbatch.results.plan import Plan
from rightbatch.results.task import TaskFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """All that was found out about one task: the results file, as an object.

    The public `rightbatch.Findings` is this plus saving, loading and showing.
    """

    task: TaskFacts
    environment: dict[str, str]
    memory: MemoryProfile | None = None
    throughput: ThroughputProfile | None = None
    communication: Communication | None = None
    energy: EnergyProfile | None = None
    learning_rate: LRCurve | None = None
    race: LRRace | None = None
    noise: NoiseScale | None = None
    track: NoiseTrack | None = None
    critical_batch_size: CriticalBatchSize | None = None
    plan: Plan | None = None
    seconds: dict[str, float] = field(default_factory=dict[str, float])  # what each part took
