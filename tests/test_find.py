"""What `find` asks its instruments for."""

import importlib
from typing import Any

import pytest

import rightbatch as rb
from rightbatch.results import MemoryProfile, Status
from rightbatch.task import Task
from rightbatch.testing import QuadraticTask

find = importlib.import_module("rightbatch.find")  # the package's name is the function's


@pytest.mark.parametrize(("seconds", "isolate"), [(60.0, False), (312.0, False), (313.0, True)])
def test_with_time_enough_sizes_are_tried_in_processes_of_their_own(
    seconds: float, isolate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A twelfth of the time goes to memory: 25 seconds of 313."""
    asked: list[bool] = []

    def nothing_fits(task: Task, *, isolate: bool, **options: Any) -> MemoryProfile:
        asked.append(isolate)
        return MemoryProfile(
            max_verified_batch_size=0,
            upper_bound=0,
            budget_bytes=1,
            points=(),
            status=Status.NOTHING_FITS,
        )

    monkeypatch.setattr(find, "measure_memory", nothing_fits)
    found = rb.find(QuadraticTask().task, time_budget_seconds=seconds)
    assert asked == [isolate]
    assert found.plan is None
