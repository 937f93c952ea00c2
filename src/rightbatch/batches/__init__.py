"""How many examples each step sees, and which: schedules, and the samplers that follow them.

`schedules.py` says the size by examples seen: `stages.py` writes tables, `hysteresis.py` follows a
noise scale, `policies.py` says what published rules want of it, `sizes.py` which sizes are valid.
`samplers.py` draws batches of changing size from the order of `drawing.py`; `regrouping.py` makes
batches of exact size from what was loaded before; `cutting.py` says where their examples are.
"""

from rightbatch.batches.cutting import PerExample
from rightbatch.batches.regrouping import Regrouped, micro_batches
from rightbatch.batches.samplers import BatchSizeSampler
from rightbatch.batches.schedules import BatchSizeSchedule, Decision
from rightbatch.batches.sizes import nearest_valid

__all__ = [
    "BatchSizeSampler",
    "BatchSizeSchedule",
    "Decision",
    "PerExample",
    "Regrouped",
    "micro_batches",
    "nearest_valid",
]
