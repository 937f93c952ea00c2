"""Tasks to measure: the built-in ones, and those that a user's own function builds.

`registry.py` says which there are; one file per built-in task builds it. `data_files.py` finds
the data, `bike_table.py` reads a table, `rows.py` holds the examples, `building.py` seeds the
models, and `user_code.py` runs functions that are not ours.
"""

from rightbatch.tasks.registry import BUILT_IN, BuiltIn, load_task

__all__ = ["BUILT_IN", "BuiltIn", "load_task"]
