"""The batch size of a running training loop, and everything that must follow it.

`controller.py` is what the loop talks to; `accumulation.py` cuts batches into micro-batches and
weighs them, `evidence.py` asks the monitor, `moves.py` is the record.
"""

from rightbatch.control.controller import BatchSizeController
from rightbatch.control.moves import Move

__all__ = ["BatchSizeController", "Move"]
