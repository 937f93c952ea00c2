"""Which batch size and learning rate to train with, measured.

    findings = rightbatch.find(rightbatch.Task(model, optimizer, dataset, loss))
    print(findings)

`Task` is what is trained; ``measure_...``, `track_noise`, `range_test` and `race` measure
it and change nothing; `plan` is a pure function of their results; `find` runs them all.
"""

from rightbatch.batches import BatchSizeSampler, BatchSizeSchedule
from rightbatch.control import BatchSizeController
from rightbatch.errors import (
    CannotConvert,
    CannotPlan,
    CoupledLoss,
    DataUnavailable,
    MissingExtra,
    MixesExamples,
    NotRepeatable,
    ResultsError,
    RightBatchError,
    TaskError,
)
from rightbatch.find import find
from rightbatch.findings import Findings, load
from rightbatch.hardware import (
    energy_counters,
    measure_communication,
    measure_energy,
    measure_memory,
    measure_throughput,
)
from rightbatch.lr import ExampleLR, one_forward_many_backwards, race, range_test
from rightbatch.noise import (
    Calibration,
    Explanation,
    NoiseMonitor,
    calibrate,
    explain,
    measure_noise,
    per_example_grad_sq,
    track_noise,
)
from rightbatch.norm import (
    GhostBatchNorm,
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    convert_ghost_batch_norm,
    synchronize_batch_norm,
)
from rightbatch.plan import critical_batch_size, plan
from rightbatch.results import (
    Communication,
    CriticalBatchSize,
    EnergyProfile,
    GeometryNoise,
    LayerNoise,
    LRCurve,
    LRRace,
    MemoryProfile,
    NoiseScale,
    NoiseTrack,
    Plan,
    Status,
    ThroughputProfile,
)
from rightbatch.scaling import (
    LayerwiseReport,
    ScalingReport,
    check_layerwise_optimizer,
    scale_hyperparameters,
)
from rightbatch.task import Task, supervised

__all__ = [
    "BatchSizeController",
    "BatchSizeSampler",
    "BatchSizeSchedule",
    "Calibration",
    "CannotConvert",
    "CannotPlan",
    "Communication",
    "CoupledLoss",
    "CriticalBatchSize",
    "DataUnavailable",
    "EnergyProfile",
    "ExampleLR",
    "Explanation",
    "Findings",
    "GeometryNoise",
    "GhostBatchNorm",
    "GhostBatchNorm1d",
    "GhostBatchNorm2d",
    "GhostBatchNorm3d",
    "LRCurve",
    "LRRace",
    "LayerNoise",
    "LayerwiseReport",
    "MemoryProfile",
    "MissingExtra",
    "MixesExamples",
    "NoiseMonitor",
    "NoiseScale",
    "NoiseTrack",
    "NotRepeatable",
    "Plan",
    "ResultsError",
    "RightBatchError",
    "ScalingReport",
    "Status",
    "Task",
    "TaskError",
    "ThroughputProfile",
    "calibrate",
    "check_layerwise_optimizer",
    "convert_ghost_batch_norm",
    "critical_batch_size",
    "energy_counters",
    "explain",
    "find",
    "load",
    "measure_communication",
    "measure_energy",
    "measure_memory",
    "measure_noise",
    "measure_throughput",
    "one_forward_many_backwards",
    "per_example_grad_sq",
    "plan",
    "race",
    "range_test",
    "scale_hyperparameters",
    "supervised",
    "synchronize_batch_norm",
    "track_noise",
]
