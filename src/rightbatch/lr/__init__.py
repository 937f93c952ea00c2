"""Instruments for the learning rate: where it breaks training, and which one trains fastest.

`range_test.py` sweeps the rate over decades and `curve.py` reads the sweep; `race.py` lets a few
rates train side by side and drops the slower half again and again. `stepping.py` is their footing.
"""

from rightbatch.lr.race import race
from rightbatch.lr.range_test import range_test

__all__ = ["race", "range_test"]
