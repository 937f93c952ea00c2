"""Instruments for the learning rate: where it breaks training, and which one trains fastest.

`range_test.py` sweeps the rate over decades and `curve.py` reads the sweep; `race.py` lets a few
rates train side by side and drops the slower half again and again. `stepping.py` is their footing.
`schedules.py` sets the rate by examples seen, along one of `shapes.py`;
`many_backwards.py` takes many steps from one forward pass, so that doing so can be measured.
"""

from rightbatch.lr.many_backwards import one_forward_many_backwards
from rightbatch.lr.race import race
from rightbatch.lr.range_test import range_test
from rightbatch.lr.schedules import ExampleLR
from rightbatch.lr.shapes import (
    Constant,
    Cosine,
    FromTorch,
    InverseSqrt,
    Linear,
    Sequence,
    Steps,
    Warmup,
)

__all__ = [
    "Constant",
    "Cosine",
    "ExampleLR",
    "FromTorch",
    "InverseSqrt",
    "Linear",
    "Sequence",
    "Steps",
    "Warmup",
    "one_forward_many_backwards",
    "race",
    "range_test",
]
