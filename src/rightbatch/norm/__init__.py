"""Batch normalisation where the batch grows, and where it is spread over devices.

`ghost.py` normalises by statistics of parts of a fixed size, and `convert.py` turns a model's
layers into that and back; `sync.py` averages running statistics over ranks before a checkpoint;
`moments.py` pools means and variances.
"""

from rightbatch.norm.convert import convert_ghost_batch_norm
from rightbatch.norm.ghost import (
    GhostBatchNorm,
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
)
from rightbatch.norm.sync import synchronize_batch_norm

__all__ = [
    "GhostBatchNorm",
    "GhostBatchNorm1d",
    "GhostBatchNorm2d",
    "GhostBatchNorm3d",
    "convert_ghost_batch_norm",
    "synchronize_batch_norm",
]
