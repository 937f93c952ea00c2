"""What every instrument returns: frozen numbers with their doubt, and nothing that computes.

One dataclass per result; `Results` holds them all and mirrors the results file
(``"schema": "rightbatch/1"``), so that what was saved is enough to plan and to report again.

Conventions: an interval is 95 %; an upper end that the data do not bound is ``None``;
a part that was not measured is ``None`` on `Results` and absent from the file.
"""

from rightbatch.results.hardware import (
    Communication,
    EnergyPoint,
    EnergyProfile,
    LoopClocks,
    MemoryPoint,
    MemoryProfile,
    StepShape,
    StepShares,
    ThroughputPoint,
    ThroughputProfile,
    WorkerPoint,
)
from rightbatch.results.learning import (
    CriticalBatchSize,
    LRCurve,
    LRPoint,
    LRRace,
    RaceEntry,
    StepsFit,
)
from rightbatch.results.noise import GeometryNoise, LayerNoise, NoisePoint, NoiseScale, NoiseTrack
from rightbatch.results.plan import Candidate, CostOption, Current, FrontPoint, Plan
from rightbatch.results.results import Results
from rightbatch.results.scaling import Change, Validity
from rightbatch.results.status import Status
from rightbatch.results.task import TaskFacts

__all__ = [
    "Candidate",
    "Change",
    "Communication",
    "CostOption",
    "CriticalBatchSize",
    "Current",
    "EnergyPoint",
    "EnergyProfile",
    "FrontPoint",
    "GeometryNoise",
    "LRCurve",
    "LRPoint",
    "LRRace",
    "LayerNoise",
    "LoopClocks",
    "MemoryPoint",
    "MemoryProfile",
    "NoisePoint",
    "NoiseScale",
    "NoiseTrack",
    "Plan",
    "RaceEntry",
    "Results",
    "Status",
    "StepShape",
    "StepShares",
    "StepsFit",
    "TaskFacts",
    "ThroughputPoint",
    "ThroughputProfile",
    "Validity",
    "WorkerPoint",
]
