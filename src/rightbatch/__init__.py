"""Which batch size and learning rate to train with, measured."""

from rightbatch.errors import RightBatchError
from rightbatch.task import Task, supervised

__all__ = ["RightBatchError", "Task", "supervised"]
