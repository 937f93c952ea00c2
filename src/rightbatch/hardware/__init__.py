"""Instruments that measure the hardware under a task: what fits, and how long a step takes."""

from rightbatch.hardware.budget import cpu_budget_bytes
from rightbatch.hardware.communication import measure_communication
from rightbatch.hardware.energy import energy_counters, measure_energy
from rightbatch.hardware.memory import measure_memory
from rightbatch.hardware.step_curve import best_micro_batch
from rightbatch.hardware.throughput import measure_throughput

__all__ = [
    "best_micro_batch",
    "cpu_budget_bytes",
    "energy_counters",
    "measure_communication",
    "measure_energy",
    "measure_memory",
    "measure_throughput",
]
