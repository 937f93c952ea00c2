"""How many examples each step sees, and which: schedules, and the samplers that follow them.

`schedules.py` says the size by examples seen: `stages.py` writes tables, `hysteresis.py` follows a
noise scale, `policies.py` says what published rules want of it, `sizes.py` which sizes are valid.
"""

from rightbatch.batches.schedules import BatchSizeSchedule, Decision
from rightbatch.batches.sizes import nearest_valid

__all__ = ["BatchSizeSchedule", "Decision", "nearest_valid"]
