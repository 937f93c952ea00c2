"""The subject: what is trained, how its batches are made, and how it is left untouched.

`task.py` is the one thing that users write down; `data.py` turns their data set into
batches of any size; `world.py` puts everything back; `preflight.py` looks before we measure.
"""

from rightbatch.task.task import Task, supervised

__all__ = ["Task", "supervised"]
